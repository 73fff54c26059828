"""Every limit of graphopt in one place. Sizes are bytes unless the name says otherwise.

A limit guards against input that was made to exhaust memory or time; none of them changes a result
silently: what runs into one is refused with the limit's name.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

#: A protobuf message cannot be larger; above, weights go to an external data file.
PROTOBUF_MAX: Final = 2 * GIB - 1
#: Models whose serialized size passes this are saved with external data.
EXTERNAL_DATA_ABOVE: Final = 1800 * MIB
#: Tensors smaller than this stay inside the model file when external data is written.
EXTERNAL_DATA_MIN_TENSOR: Final = 1 * KIB
#: A model that came with external data keeps it when its weights pass this; a smaller one becomes one file.
EXTERNAL_DATA_KEPT_ABOVE: Final = 64 * MIB
#: A model file in a text form, read or written: ten times its size would be in memory.
TEXT_MODEL: Final = 256 * MIB
#: Axes of a tensor: NumPy 1 stops here, and no operator means anything at such ranks.
TENSOR_RANK: Final = 32
#: Elements of a tensor, its empty axes counted as one: no address space holds more.
TENSOR_ELEMENTS: Final = 1 << 56

#: Largest result of folding one node, unless it replaces initializers at least as large.
FOLD_RESULT: Final = 1 * MIB
#: Total that folding may hold in memory in one run.
FOLD_TOTAL: Final = 64 * MIB

#: Nodes that a model may have after all its function calls are expanded.
EXPANDED_NODES: Final = 2_000_000
#: Iterations of a Loop that may be unrolled, and nodes that this may make of one Loop.
UNROLL_ITERATIONS: Final = 16
UNROLL_NODES: Final = 2_000
#: Depth of subgraphs inside subgraphs, and of functions calling functions.
NESTING_DEPTH: Final = 64

#: Weights that one evaluation session may hold; a larger model is evaluated segment by segment.
SEGMENT_WEIGHTS: Final = 128 * MIB
#: Weights of one such segment, a small one: a session of a few nodes is made in milliseconds.
SEGMENT_PIECE: Final = 32 * MIB
#: Elements of one drawn sample input.
SAMPLE_ELEMENTS: Final = 64 * 1024 * 1024
#: Outputs that the search for samples keeps; what is not kept is computed again.
SAMPLE_OUTPUTS: Final = 64 * MIB

#: A recipe file, its nesting, and its YAML aliases.
RECIPE_BYTES: Final = 1 * MIB
RECIPE_DEPTH: Final = 32
RECIPE_ALIASES: Final = 100

#: Seconds of an import, if the user names no others; its memory is a share of the machine's.
IMPORT_SECONDS: Final = 1800
IMPORT_MEMORY_SHARE: Final = 0.8

#: Members of an archive, and how many times its size it may have unpacked: weights hardly shrink by zipping.
ARCHIVE_MEMBERS: Final = 100_000
ARCHIVE_EXPANSION: Final = 100
#: A member of such an archive that is read to be looked at, and a pickle in it.
ARCHIVE_MEMBER: Final = 2 * GIB
PICKLE: Final = 64 * MIB
#: The JSON of an exported program: the graph of a large network, with the stack of every node.
PROGRAM_JSON: Final = 256 * MIB
