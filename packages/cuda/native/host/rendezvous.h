// Where the members of a communicator among processes meet: a listener that the process serves
// which has made the id. It lives until all have come, or for ten minutes.
#pragma once

#include <cstdint>

#include "rendezvous-id.h"

namespace ckpt {

// Starts one. CKPT_ERR_IO where there is no socket.
RendezvousId open_rendezvous();
// Ends it where it is this process's: nobody of this process waits for the others any more.
void close_rendezvous(const RendezvousId& id);

}  // namespace ckpt
