"""TensorGuardFlow: a control plane for machine learning on robot fleets."""

__version__ = "0.1.0"
