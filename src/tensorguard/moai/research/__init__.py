"""RESEARCH TIER: a transformer layer on ciphertexts, after MOAI (Zhang et al., ICLR 2026, ePrint 2025/991).

Not served by the gateway, in no pack, and without a promise of stability. What it computes, what it
costs and how well: docs/moai-research.md.

The server's half (`runtime`, `polynomials`, `attention`, `feed_forward`) cannot decrypt; the client's
half (`client`) packs, encrypts and refreshes.
"""
