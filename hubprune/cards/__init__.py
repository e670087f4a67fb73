"""The cards room: from what was found to README.md, hubprune.json and recipe.yaml."""
