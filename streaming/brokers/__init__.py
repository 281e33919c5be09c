"""What it takes to reach a broker: security, a first look at it, and the second client."""
