"""Windows in, gated model bundles out: encoder, model, losses, adversarial fine-tuning, learner, gate, registry."""
