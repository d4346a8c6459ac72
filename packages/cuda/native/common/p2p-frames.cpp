#include "p2p-frames.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "error.h"
#include "sha256.h"

namespace ckpt {
namespace {

constexpr uint32_t kAddressMagic = 0x61706b63;
constexpr uint32_t kKeyMagic = 0x6b706b63;

struct Header {
  uint32_t magic;
  uint32_t packed_bytes;
  uint64_t address;
  uint64_t bytes;
  uint64_t checksum;  // of the header with 0 here, and what follows
};

uint64_t checksum_of(Header header, const uint8_t* packed) {
  header.checksum = 0;
  uint8_t digest[kSha256Bytes];
  Sha256 hash;
  hash.update(&header, sizeof header);
  hash.update(packed, header.packed_bytes);
  hash.finish(digest);
  uint64_t checksum;
  std::memcpy(&checksum, digest, sizeof checksum);
  return checksum;
}

std::vector<uint8_t> frame(uint32_t magic, uint64_t address, uint64_t bytes,
                           const std::vector<uint8_t>& packed) {
  Header header{magic, static_cast<uint32_t>(packed.size()), address, bytes, 0};
  header.checksum = checksum_of(header, packed.data());
  std::vector<uint8_t> out(sizeof header + packed.size());
  std::memcpy(out.data(), &header, sizeof header);
  std::copy(packed.begin(), packed.end(), out.begin() + sizeof header);
  return out;
}

Header read(uint32_t magic, const char* what, const uint8_t* bytes, uint32_t length) {
  Header header{};
  if (length >= sizeof header) std::memcpy(&header, bytes, sizeof header);
  if (header.magic != magic || header.packed_bytes != length - sizeof header ||
      header.checksum != checksum_of(header, bytes + sizeof header))
    fail(CKPT_ERR_INVALID, "the %u bytes are no peer's %s", length, what);
  return header;
}

}  // namespace

std::vector<uint8_t> frame_address(const std::vector<uint8_t>& address) {
  return frame(kAddressMagic, 0, 0, address);
}

std::vector<uint8_t> frame_key(uint64_t address, uint64_t bytes,
                               const std::vector<uint8_t>& packed) {
  return frame(kKeyMagic, address, bytes, packed);
}

std::vector<uint8_t> read_address(const uint8_t* bytes, uint32_t length) {
  read(kAddressMagic, "address", bytes, length);
  return {bytes + sizeof(Header), bytes + length};
}

RemoteRange read_key(const uint8_t* bytes, uint32_t length) {
  const Header header = read(kKeyMagic, "key", bytes, length);
  return {header.address, header.bytes, {bytes + sizeof header, bytes + length}};
}

// A status, and a text that ends with a zero or is cut.
std::vector<uint8_t> frame_refusal(const Error& error, uint64_t bytes) {
  std::vector<uint8_t> out(bytes == kRefusalBytesMax ? bytes - 1 : kRefusalBytesMax);
  const int32_t status = error.status();
  std::memcpy(out.data(), &status, sizeof status);
  const size_t text_bytes = std::min(error.text().size(), out.size() - sizeof status);
  std::memcpy(out.data() + sizeof status, error.text().data(), text_bytes);
  return out;
}

Error read_refusal(const uint8_t* bytes, uint64_t length) {
  int32_t status = 0;
  if (length < kRefusalBytesMax - 1 || length > kRefusalBytesMax)
    return Error(CKPT_ERR_IO, "the peer does not share what was to be read");
  std::memcpy(&status, bytes, sizeof status);
  const auto* text = reinterpret_cast<const char*>(bytes) + sizeof status;
  const bool known = status > CKPT_NOT_READY && status <= CKPT_ERR_STATE;
  return Error(known ? static_cast<ckpt_status>(status) : CKPT_ERR_IO,
               std::string(text, strnlen(text, length - sizeof status)));
}

// A lane is printed as "lane[1]:  4:posix/memory.0 md[3] -> md[3]/posix/sysdev[255] am am_bw#0":
// the name of a transport is behind the second colon, and what it is for at the end.
std::string transport_of(const std::string& description) {
  std::istringstream lines(description);
  std::string best;
  const auto is = [](const std::string& name, const char* kind) {
    return name.rfind(kind, 0) == 0;
  };
  for (std::string line; std::getline(lines, line);) {
    const size_t lane = line.find("lane[");
    const size_t number = lane == std::string::npos ? lane : line.find(':', lane);
    const size_t name = number == std::string::npos ? number : line.find(':', number + 1);
    if (name == std::string::npos) continue;
    const std::string transport = line.substr(name + 1, line.find('/', name) - name - 1);
    // Those of RDMA that have a read, in the order in which UCX prefers them for it.
    if (is(transport, "rc") || is(transport, "dc") || is(transport, "srd")) return "rdma";
    if (is(transport, "cma") || is(transport, "knem") || is(transport, "xpmem")) best = "cma";
    // What nothing of these can do goes as messages, over the lane for those.
    if (!best.empty() || line.find(" am ") == std::string::npos) continue;
    best = is(transport, "posix") || is(transport, "sysv") ? "shm" : "emulated";
  }
  return best;
}

}  // namespace ckpt
