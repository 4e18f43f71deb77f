"""Training without picking up a trait, and how far training moved a model: `finetune`, `shift`."""
