"""The whole of Purkinje on one machine, on loopback: for the demo, for ``verify`` and for the tests. Not for a hospital."""
