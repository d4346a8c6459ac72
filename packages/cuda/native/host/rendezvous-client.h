// How a member of a communicator comes to its rendezvous, and hears of the others.
#pragma once

#include "common/signals.h"
#include "common/wake.h"
#include "rendezvous-frames.h"

namespace ckpt {

// Tries until the deadline while there is nobody, and comes again where the connection is lost.
// signal may be null. CKPT_ERR_ABORTED, CKPT_ERR_TIMEOUT, or what the rendezvous refuses with.
MemberTable meet_members(const RendezvousId& id, const Hello& hello,
                         const std::vector<uint8_t>& address, Signal* signal,
                         uint32_t timeout_ms);

}  // namespace ckpt
