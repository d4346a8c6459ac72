const BYTES = 64

/** What another process opens device memory with. */
export function ipcHandle(memory: number): Uint8Array {
  const handle = new Uint8Array(BYTES)
  new DataView(handle.buffer).setUint32(0, memory)
  return handle
}

/** Whose it is. */
export function memoryOf(handle: Uint8Array): number {
  return new DataView(handle.buffer, handle.byteOffset).getUint32(0)
}
