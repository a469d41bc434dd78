"""What can happen to a growing model, and how it is proven: events, segments, chain and keys.

Importable without torch, without NATS and without a compiler, so that an auditor can check a
run on a machine that could never have produced it.
"""

__version__ = "0.1.0"
