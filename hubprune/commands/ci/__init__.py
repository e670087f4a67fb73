"""What a CI job is told of a publish: a summary for people and outputs for its next steps."""
