"""What every floor may use.  Nothing comes in but files and words of others; what goes out is checked, or one error.

errors, console       what can go wrong, what a person sees and how they stop it
artifacts             the frozen values that cross a stage
amounts               how numbers, shares, sizes and savings are written
specs, recipe         what decides a publish; options, requests, afterwards: what each command can be asked
editing               what is wrong with a recipe, in which line; its JSON Schema
suites                benchmarks by the name of a suite, and what they cost
prompts               what models are asked, and what a chat template makes of it
strict                JSON and YAML of strangers
architectures         the families of models
config, weights       a checkpoint's config.json, with the sublayers that it tells of, and its safetensors
templates, neutral    the code that loads a pruned model, and the door that all models come through
devices, memory       what a run computes on: processes, device and dtype, the machine; the memory that it may take
extras                what is installed only where it is asked for, and what differs between versions of libraries
fresh                 processes that load a model, and share what importing the libraries takes
streaming             a model that exists one decoder layer at a time
head                  its logits
bypass                a loaded base that computes as if it were pruned
files, privacy        what is written and kept for the next run, what leaves this machine
"""

__version__ = "0.1.0"
