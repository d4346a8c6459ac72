// One thread that watches recorded events and raises signals. Host functions in a stream would hold the stream up for the
// time of a thread switch, and do not run at all behind an error.
#pragma once

#include <memory>

#include "stream.h"

namespace ckpt {

void notify_when_complete(std::shared_ptr<Event> event, std::shared_ptr<Signal> signal);

}  // namespace ckpt
