"""`headrace doctor`: looks at what Headrace needs before it starts, or at what is wrong when it runs.

A module per group of checks. A check takes the settings and yields findings; `examination` runs them side by side,
each with a deadline. Nothing is written but a file in the data directory that is removed again, one in the store of
snapshots likewise, and a record in the dead-letter topic that its readers pass over.
"""
