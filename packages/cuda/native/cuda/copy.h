#pragma once

#include <vector>

#include "cuda-api.h"

namespace ckpt {

// Pieces between two allocations of the current device, in any order.
void enqueue_pieces(cudaStream_t stream, uint8_t* to, const uint8_t* from,
                    const std::vector<ckpt_copy_piece>& pieces);

}  // namespace ckpt
