// One thread that watches recorded events. A host function in the stream would hold the stream up for the time of a thread
// switch, and would not run at all behind an error.
#pragma once

#include <functional>
#include <memory>

#include "event.h"

namespace ckpt {

// Calls `then` once the last record of the event is complete, with an error or without. `then` must not block or throw.
void when_complete(std::shared_ptr<CudaEvent> event, std::function<void()> then);

}  // namespace ckpt
