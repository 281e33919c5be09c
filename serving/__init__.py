"""A bundle and user state in, ranked items out. Builds on `training`; never imports DeepSpeed."""
