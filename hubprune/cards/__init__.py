"""Cards: from the report of a publish to README.md, hubprune.json and recipe.yaml.

- context: what a card template sees; every number in it is text already.
- card: report, context, README.md; and what a card depends on.
- front_matter: the YAML on top, and results for leaderboards.
- overview: one sentence, the table at a glance, and the code of "Use it", which is run.
- removal: what was removed, by which scores, on which texts.
- target: a saving that was asked for, and loss against saving.
- measured, timed, free_text: benchmarks; speed and memory; what both models wrote.
- limits: verdict, warnings and the regression budget, by rules.
- sibling, healed: the same for a repo beside a pruned one: quantized, for another runtime, or trained on.
- commands, provenance: commands, versions, citations, and what the base's licence asks for.
- markdown: how numbers, any text and the author's notes are written.
- manifest, records: hubprune.json and recipe.yaml, written and read back.
"""
