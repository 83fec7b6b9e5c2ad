"""Torch modules of SeTe-VSR, one idea a file. Layers come from an injected `ops` namespace (`torch.nn` by default)."""
