#include "rendezvous-id.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "common/random.h"
#include "common/sha256.h"
#include "interfaces.h"

namespace ckpt {
namespace {

constexpr uint64_t kMagic = 0x3176747072756b63;

}  // namespace

uint64_t host_tag() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  file >> text;
  char space[64];
  const ssize_t length = readlink("/proc/self/ns/net", space, sizeof space);
  if (length > 0) text.append(space, static_cast<size_t>(length));
  uint8_t digest[kSha256Bytes];
  Sha256 hash;
  hash.update(text.data(), text.size());
  hash.finish(digest);
  uint64_t tag;
  std::memcpy(&tag, digest, sizeof tag);
  return tag;
}

RendezvousId make_rendezvous_id(uint16_t port) {
  RendezvousId id{};
  id.magic = kMagic;
  fill_random(id.secret.data(), id.secret.size());
  id.host = host_tag();
  id.port = port;
  const auto addresses = interface_addresses(RendezvousId::kAddressesMax);
  id.address_count = static_cast<uint16_t>(addresses.size());
  std::copy(addresses.begin(), addresses.end(), id.addresses);
  return id;
}

std::optional<RendezvousId> read_rendezvous_id(const uint8_t* bytes) {
  RendezvousId id;
  std::memcpy(&id, bytes, sizeof id);
  if (id.magic != kMagic || id.address_count > RendezvousId::kAddressesMax) return std::nullopt;
  return id;
}

}  // namespace ckpt
