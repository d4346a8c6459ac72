const HEAD_LENGTH_BYTES = 4

/** A message of direct placement: the length of a JSON object as 32 bits little-endian, the object, and what follows it. */
export function packFrame(head: object, body: Uint8Array = new Uint8Array(0)): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(head))
  const frame = new Uint8Array(HEAD_LENGTH_BYTES + json.length + body.length)
  new DataView(frame.buffer).setUint32(0, json.length, true)
  frame.set(json, HEAD_LENGTH_BYTES)
  frame.set(body, HEAD_LENGTH_BYTES + json.length)
  return frame
}

/** `body` is a view of the frame. Null: it is none. */
export function unpackFrame(frame: Uint8Array): { head: unknown; body: Uint8Array } | null {
  if (frame.length < HEAD_LENGTH_BYTES) return null
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength)
  const end = HEAD_LENGTH_BYTES + view.getUint32(0, true)
  if (end > frame.length) return null
  try {
    const text = new TextDecoder('utf-8', { fatal: true })
    const head: unknown = JSON.parse(text.decode(frame.subarray(HEAD_LENGTH_BYTES, end)))
    return { head, body: frame.subarray(end) }
  } catch {
    return null
  }
}
