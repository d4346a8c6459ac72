// Whether ckpt_init has been called.
#pragma once

#include "ckpt.h"

namespace ckpt {

void initialize(const ckpt_config& config);
// CKPT_ERR_STATE before initialize().
void require_initialized();

}  // namespace ckpt
