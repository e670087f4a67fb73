"""The terminal: in come typed options, out come tables or JSON on stdout, talk on stderr, and an exit code.

options          a command made of a request: its flags, and the request of what was typed
terminal         errors shown, results written, the manners of both streams
publish          publish, push, score, prune, verify; sweep, speed, compare
published        refresh, reproduce, export gguf
local            card, hub, demo, env, doctor
summary, measured_lines, side_by_side    results for people
ci               the summary of a publish on the page of a CI job
"""
