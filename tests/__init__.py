"""Tests, sorted by what they need: unit, parity (Keras), e2e (data), gpu (a device)."""
