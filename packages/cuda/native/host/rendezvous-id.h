// The id of a communicator among processes: where its members meet, and a secret that lets them in.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "ckpt.h"

namespace ckpt {

using Secret = std::array<uint8_t, 32>;

// As it is in the id's bytes. All processes are of machines with one byte order.
struct RendezvousId {
  static constexpr size_t kAddressesMax = 19;
  uint64_t magic;
  Secret secret;
  uint64_t host;  // host_tag(): members with another one do not try the loopback
  uint16_t port;  // the host's order
  uint16_t address_count;
  uint32_t addresses[kAddressesMax];  // IPv4, network order
};
static_assert(sizeof(RendezvousId) == CKPT_COMMUNICATOR_ID_BYTES);

// Of this process, with a new secret and the addresses of this host.
RendezvousId make_rendezvous_id(uint16_t port);
// Nothing unless the bytes are one.
std::optional<RendezvousId> read_rendezvous_id(const uint8_t* bytes);
// The same for processes that have one loopback interface.
uint64_t host_tag();

}  // namespace ckpt
