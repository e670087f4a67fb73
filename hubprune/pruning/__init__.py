"""From a base in a folder, and texts to calibrate on, to a pruned checkpoint that is verified against it.

base_files        what the base's files say, and where they contradict each other
documents         calibration mixes and the texts of their subsets
calibration       the samples that are drawn of a mix, as token ids
importance        scores of all sublayers, and the metrics
variants          a base with a change in one layer
leave_one_out     what a model loses when one layer changes, of many such variants at once
rooms             where the states of all those variants are
loss_scores       scores of all that
aggregation       means over documents and subsets with their errors; how well two orders agree
selection         the plan: which sublayers go, how wide MLPs become
runs              the same of a run of layers, which goes as a whole
saving            what every sublayer saves when it goes
frontier          the plans that save most for the least loss
iterative         the same in rounds, with new scores in between
foreign           what others wrote who pruned: their weights, and what their config.json says of the base's layers
matching          which layers and neurons of a base are left in it, by their values
layouts           how a result is written so that runtimes load it, and how a pruned base is made loadable
width             narrower MLPs: which neurons stay, and their part of a tensor
tokenizer_files   tokenizer files that give the base's token ids in every version of transformers
checkpoint        the written folder
verify            what has to be true of it, and whether it is
placing           where both run: device, dtype, and what stays in memory
comparing         what both compute, in a fresh process and few passes
loading           that process
"""
