// Addresses and keys as peers hand them to each other, and what UCX says of a connection.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ckpt {

struct RemoteRange {
  uint64_t address;
  uint64_t bytes;
  std::vector<uint8_t> packed;  // UCX's key
};

// Each with a checksum: UCX believes what it is given.
std::vector<uint8_t> frame_address(const std::vector<uint8_t>& address);
std::vector<uint8_t> frame_key(uint64_t address, uint64_t bytes,
                               const std::vector<uint8_t>& packed);
// CKPT_ERR_INVALID for bytes that are none.
std::vector<uint8_t> read_address(const uint8_t* bytes, uint32_t length);
RemoteRange read_key(const uint8_t* bytes, uint32_t length);

// Of the text of ucp_ep_print_info.
std::string transport_of(const std::string& description);

}  // namespace ckpt
