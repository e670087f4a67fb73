"""The Hub: from a name to a base, and from a folder to one commit that is found to be what was sent.

Whatever is given a session raises HubError where the Hub refuses or does not answer.

- session, retry: which Hub and as whom; what is asked again, and errors in one's own words.
- transfer: bytes down and up, and whether they are the right ones.
- repos: a base, its files and its headers; which data sets are benchmarks.
- remote: what is in a repo, what a publish changes there, and what people did there.
- target: where a result goes; repo and branch are made, and taken back.
- preflight: all that can refuse a publish, and what a token may do: asked before any compute.
- upload_plan: what a publish would send, and how it sends less.
- commit: the one commit, and the look at the Hub after an error.
- announcing: a staged pull request is merged, a collection and the old version are told.
"""
