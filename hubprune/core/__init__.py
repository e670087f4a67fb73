"""What every floor may use.  Nothing comes in but files and words of others; what goes out is checked, or one error.

errors, processes, console     what can go wrong, who is told to stop, what a person sees
artifacts                      the frozen values that cross a stage
specs, suites, recipe          what decides a publish; options, requests: what each command can be asked
strict                         JSON and YAML of strangers
architectures, structure       the families of models, and which sublayers a checkpoint has
config, weights                a checkpoint's config.json and its safetensors
templates, neutral, decoder    the code that loads a pruned model, the door that all models come through, its layers
devices                        what a run computes on
files, stages, privacy         what is written, what is kept for the next run, what leaves this machine
"""
