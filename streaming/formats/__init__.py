"""Records in other shapes than ours: how they become events, and events become records."""
