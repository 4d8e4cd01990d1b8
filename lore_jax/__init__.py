"""LoRe: low-rank reward modelling (arXiv 2504.14439) in JAX."""
