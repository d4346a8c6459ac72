import { afterAll, expect, test } from 'bun:test'
import { openLibrary } from './library.ts'
import { NativeError } from './native-error.ts'

const library = openLibrary({ kind: 'host', hostDevices: 2 })
const objects = library.liveObjects()

function open(): number | null {
  try {
    return library.p2p.open('')
  } catch (error) {
    if (!(error instanceof NativeError) || error.code !== 'not_supported') throw error
    console.warn(`skipped: ${error.message}`)
    return null
  }
}

const owner = open()

test.skipIf(owner === null)('a stream copies out of what a peer shares', () => {
  const bytes = 2 ** 20 + 7
  const buffer = library.bufferAlloc(bytes, 0)
  const p2p = library.p2p.open('')
  const key = library.p2p.share(owner ?? 0, buffer)
  const peer = library.p2p.connect(p2p, library.p2p.address(owner ?? 0))
  const remote = library.p2p.attach(peer, key)
  const stream = library.streamCreate(0)
  const memory = library.memoryAlloc(0, bytes)
  library.memoryFill(memory, 0, bytes, 1)
  library.p2p.copyRemote(stream, memory, 0, remote, 0, bytes)
  library.streamSync(stream, 0, 10_000)
  expect(library.memorySha256(memory, 0, bytes)).toEqual(library.bufferSha256(buffer, 0, bytes))
  expect(['cma', 'shm', 'emulated', 'rdma']).toContain(library.p2p.transport(peer))
  expect(() => library.p2p.copyRemote(stream, memory, 0, remote, 1, bytes)).toThrow('outside')
  library.p2p.detach(remote)
  library.p2p.disconnect(peer)
  library.p2p.close(p2p)
  library.p2p.unshare(owner ?? 0, buffer)
  library.streamDestroy(stream)
  library.memoryFree(memory)
  library.bufferFree(buffer)
})

test.skipIf(owner === null)('a buffer takes pieces of what a peer shares', () => {
  const bytes = 2 ** 20 + 7
  const buffer = library.bufferAlloc(bytes, 0)
  const target = library.bufferAlloc(bytes, 0)
  const file = library.fileOpen(process.execPath)
  const filled = library.readStart([{ file, buffer, fileOffset: 0, bufferOffset: 0, bytes }], 1, 0)
  library.readWait(filled, 0, 10_000)
  library.readDestroy(filled)
  library.fileClose(file)
  const p2p = library.p2p.open('')
  const key = library.p2p.share(owner ?? 0, buffer)
  const peer = library.p2p.connect(p2p, library.p2p.address(owner ?? 0))
  const remote = library.p2p.attach(peer, key)
  const signal = library.signalCreate()
  const read = library.p2p.readStart(
    [
      { remote, remoteOffset: 0, bufferOffset: 0, bytes: 4096 },
      { remote, remoteOffset: 4096, bufferOffset: 4096, bytes: bytes - 4096 },
    ],
    target,
    signal,
  )
  library.signalWait(signal, 10_000)
  expect(library.p2p.readQuery(read)).toBe(true)
  expect(library.bufferSha256(target, 0, bytes)).toEqual(library.bufferSha256(buffer, 0, bytes))
  library.p2p.readDestroy(read)
  const outside = { remote, remoteOffset: 1, bufferOffset: 0, bytes }
  expect(() => library.p2p.readStart([outside], target, 0)).toThrow('outside')
  library.p2p.disconnect(peer)
  const late = library.p2p.readStart([{ ...outside, remoteOffset: 0 }], target, 0)
  expect(() => library.p2p.readQuery(late)).toThrow(NativeError)
  library.p2p.readDestroy(late)
  library.p2p.detach(remote)
  library.p2p.close(p2p)
  library.p2p.unshare(owner ?? 0, buffer)
  library.signalDestroy(signal)
  library.bufferFree(target)
  library.bufferFree(buffer)
})

test.skipIf(owner === null)('what is no address is refused', () => {
  expect(() => library.p2p.connect(owner ?? 0, new Uint8Array(100))).toThrow('address')
})

test.skipIf(owner === null)('the id for members of two processes has 128 bytes', () => {
  expect(library.communicatorId(1, 2)).toHaveLength(128)
})

afterAll(() => {
  if (owner !== null) library.p2p.close(owner)
  expect(library.liveObjects()).toBe(objects)
})
