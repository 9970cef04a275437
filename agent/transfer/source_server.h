// The process that serves weights to peers: what a keeper forks (source_process.h). Private to
// agent/transfer.

#pragma once

#include "agent/transfer/slab_mappings.h"

namespace rouse::transfer {

/// Answers the agent on `socket` until it closes it; the process's exit status.
int ServeWeights(SlabMappings mappings, int socket);

}  // namespace rouse::transfer
