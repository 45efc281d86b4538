"""MOAI: signed model packs, evaluated on data that the evaluator cannot read."""
