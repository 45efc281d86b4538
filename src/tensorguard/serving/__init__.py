"""The MOAI gateway: it evaluates models on ciphertexts that it cannot read."""
