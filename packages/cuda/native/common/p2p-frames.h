// Addresses and keys as peers hand them to each other, and what UCX says of a connection.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"

namespace ckpt {

struct RemoteRange {
  uint64_t address;
  uint64_t bytes;
  std::vector<uint8_t> packed;  // UCX's key; empty: the owner is asked for what is read
};

// Each with a checksum: UCX believes what it is given.
std::vector<uint8_t> frame_address(const std::vector<uint8_t>& address);
std::vector<uint8_t> frame_key(uint64_t address, uint64_t bytes,
                               const std::vector<uint8_t>& packed);
// CKPT_ERR_INVALID for bytes that are none.
std::vector<uint8_t> read_address(const uint8_t* bytes, uint32_t length);
RemoteRange read_key(const uint8_t* bytes, uint32_t length);

// What an owner sends in place of data that it cannot give. Whoever has asked for `bytes` bytes tells
// it from them by its length.
constexpr size_t kRefusalBytesMax = 1025;
std::vector<uint8_t> frame_refusal(const Error& error, uint64_t bytes);
Error read_refusal(const uint8_t* bytes, uint64_t length);

// Of the text of ucp_ep_print_info.
std::string transport_of(const std::string& description);

}  // namespace ckpt
