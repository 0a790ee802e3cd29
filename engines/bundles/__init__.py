"""The released bundles: package data, one folder each."""
