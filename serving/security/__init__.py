"""Who may do what over HTTP, and how often: keys, tokens, scopes and rates.

Everything here is per replica and in memory: no request waits for another machine, except when a token is signed
with a key that has not been seen yet.
"""
