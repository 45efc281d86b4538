"""What the parts that run a model need of it: name, graph, plan and parameters, all checked."""

from __future__ import annotations

from dataclasses import dataclass

from tensorguard.moai.graph import Graph
from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import Plan
from tensorguard.wire.models import ModelView, Packing


@dataclass(frozen=True)
class ModelSpec:
    """One model, ready to be evaluated by any backend."""

    name: str
    version: str
    pack_id: str
    parameters: CkksParameters
    plan: Plan
    graph: Graph

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """Return the Galois elements whose keys a client must send."""
        return tuple(self.parameters.galois_element(step) for step in self.plan.rotations)

    @property
    def columns(self) -> int | None:
        """Return how many ciphertexts a batch has; None where one ciphertext is one sample."""
        return self.graph.features if self.plan.layout == "columns" else None

    @property
    def key_items(self) -> int:
        """Return how many objects a frame of evaluation keys holds: Galois, relinearisation."""
        return bool(self.plan.rotations) + self.plan.relinearisation

    def view(self) -> ModelView:
        """Return what clients are told."""
        return ModelView(
            name=self.name,
            version=self.version,
            pack_id=self.pack_id,
            parameters=self.parameters.to_wire(),
            parameters_id=self.parameters.id.hex(),
            rotations=self.plan.rotations,
            relinearisation=self.plan.relinearisation,
            features=self.graph.features,
            packing=packing_of(self.plan),
            input=self.graph.input,
            output=self.graph.output,
        )


def packing_of(plan: Plan) -> Packing:
    """Return the client's input layout for a plan."""
    first = plan.first
    return Packing(
        slots=plan.slots,
        period=first.period_in,
        block_length=first.block_length,
        blocks=first.blocks,
        shift=first.shift,
        layout=plan.layout,
    )
