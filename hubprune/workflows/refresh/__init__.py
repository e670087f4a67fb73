"""Bring a repo that is out to what this version writes, without computing: `hubprune refresh`.

In come repo ids; out comes a report for each.  Of weights only headers are read, none are sent, and no code of a repo
is run before it was replaced by ours.

    there      the repo as its publish left it, or why it is left alone
    anew       the files that this version writes for the same plan and base, and what of them differs
    command    check, write, one commit, load back; several repos after each other
    lines      tell people
"""
