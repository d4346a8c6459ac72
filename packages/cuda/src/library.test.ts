import { afterAll, afterEach, beforeEach, expect, test } from 'bun:test'
import { dlopen } from 'bun:ffi'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { selectDevices } from './devices.ts'
import { BUFFER_SHARED, SIGNAL_ABORT, SIGNAL_HTTP, SIGNAL_USER } from './generated.ts'
import { openLibrary } from './library.ts'
import { NativeError } from './native-error.ts'
import { numaNodeCount } from './numa.ts'
import { openSymbols } from './symbols.ts'
import type { GatherPiece, H2dPiece, Library } from './types.ts'
import { zmqPoll } from './zmq.ts'

const WAIT_MS = 20_000
const MIB = 2 ** 20
const dir = mkdtempSync(join(tmpdir(), 'ckpt-library-'))
const library: Library = openLibrary({ kind: 'host', hostDevices: 3 })
let objectsBefore = 0

beforeEach(() => {
  objectsBefore = library.liveObjects()
})
// Every test frees what it made: a method that frees the wrong thing is seen here.
afterEach(() => expect(library.liveObjects()).toBe(objectsBefore))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

function pattern(bytes: number, seed: number): Uint8Array {
  return new Uint8Array(bytes).map((_, i) => (i * seed + (i >> 9)) & 255)
}

function fileWith(name: string, content: Uint8Array): string {
  const path = join(dir, name)
  writeFileSync(path, content)
  return path
}

/** A host buffer with this content. */
function bufferWith(content: Uint8Array): number {
  const file = library.fileOpen(fileWith('buffer-content', content))
  const buffer = library.bufferAlloc(content.length, 0)
  const read = library.readStart(
    [{ file, buffer, fileOffset: 0, bufferOffset: 0, bytes: content.length }],
    2,
    0,
  )
  library.readWait(read, 0, WAIT_MS)
  library.readDestroy(read)
  library.fileClose(file)
  return buffer
}

/** The NativeError that the call throws. */
function failure(call: () => unknown): NativeError {
  try {
    call()
  } catch (error) {
    if (error instanceof NativeError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

test('devices: names, uuids that differ, shares of the memory', () => {
  expect(library.kind).toBe('host')
  expect(library.deviceCount()).toBe(3)
  const infos = [0, 1, 2].map((device) => library.deviceDescribe(device))
  for (const info of infos) {
    expect(info.uuid).toMatch(/^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
    expect(info.totalBytes).toBeGreaterThan(0)
    expect(info.pci).toBe('')
  }
  expect(new Set(infos.map((info) => info.uuid)).size).toBe(3)
  const { freeBytes, totalBytes } = library.deviceMemory(1)
  expect(freeBytes).toBeGreaterThan(0)
  expect(freeBytes).toBeLessThanOrEqual(totalBytes)
})

test('another user of the process may see another number of devices', () => {
  expect(openLibrary({ kind: 'host', hostDevices: 1 }).deviceCount()).toBe(1)
  expect(openLibrary({ kind: 'host', hostDevices: 5 }).deviceCount()).toBe(5)
  expect(() => openLibrary({ kind: 'host', hostDevices: 65 })).toThrow(RangeError)
})

const OTHER_PROCESS = `
  import { openLibrary } from '${join(import.meta.dir, 'library.ts')}'
  const library = openLibrary({ kind: 'host' })
  const [handle, bytes] = [Buffer.from(process.argv.at(-2), 'hex'), Number(process.argv.at(-1))]
  const memory = library.memoryOpen(0, new Uint8Array(handle), bytes)
  const before = Buffer.from(library.memorySha256(memory, 0, bytes)).toString('hex')
  library.memoryFill(memory, 100, 50, 7)
  library.memoryFree(memory)
  console.log(JSON.stringify({ before, live: library.liveObjects() }))
`

test('device memory: host to device, exported, opened and changed in another process', async () => {
  const content = pattern(3 * MIB + 17, 7)
  const buffer = bufferWith(content)
  expect(hex(library.bufferSha256(buffer, 0, content.length))).toBe(sha256(content))
  const memory = library.memoryAlloc(0, content.length)
  const stream = library.streamCreate(0)
  library.copyH2d(stream, memory, 0, buffer, 0, content.length)
  library.streamSync(stream, 0, WAIT_MS)
  expect(hex(library.memorySha256(memory, 0, content.length))).toBe(sha256(content))
  expect(hex(library.memorySha256(memory, 5, 100))).toBe(sha256(content.subarray(5, 105)))

  const handle = library.memoryExport(memory)
  expect(handle).toHaveLength(64)
  expect(new TextDecoder().decode(handle)).toMatch(/^\/ckpt-/)
  const script = join(dir, 'other-process.ts')
  await Bun.write(script, OTHER_PROCESS)
  const child = Bun.spawn([process.execPath, script, hex(handle), String(content.length)])
  const answer = JSON.parse(await new Response(child.stdout).text())
  expect(answer).toEqual({ before: sha256(content), live: 0 })
  content.fill(7, 100, 150)
  expect(hex(library.memorySha256(memory, 0, content.length))).toBe(sha256(content))

  library.streamDestroy(stream)
  library.memoryFree(memory)
  library.bufferFree(buffer)
})

test('device to device: pieces land where they should and nowhere else', () => {
  const content = pattern(MIB, 11)
  const buffer = bufferWith(content)
  const [src, dst] = [library.memoryAlloc(0, MIB), library.memoryAlloc(0, MIB)]
  const stream = library.streamCreate(0)
  library.memoryFill(dst, 0, MIB, 0xab)
  library.copyH2d(stream, src, 0, buffer, 0, MIB)
  library.copyDevice(stream, dst, src, [
    { dstOffset: 10, srcOffset: 1000, bytes: 300 },
    { dstOffset: MIB - 5, srcOffset: 0, bytes: 5 },
    { dstOffset: 700_000, srcOffset: 500_000, bytes: 0 },
  ])
  library.copyDevice(stream, dst, src, [])
  library.streamSync(stream, 0, WAIT_MS)
  const expected = new Uint8Array(MIB).fill(0xab)
  expected.set(content.subarray(1000, 1300), 10)
  expected.set(content.subarray(0, 5), MIB - 5)
  expect(hex(library.memorySha256(dst, 0, MIB))).toBe(sha256(expected))
  const outside = [{ dstOffset: MIB - 4, srcOffset: 0, bytes: 5 }]
  expect(failure(() => library.copyDevice(stream, dst, src, outside)).code).toBe('internal')
  library.streamDestroy(stream)
  library.bufferFree(buffer)
  library.memoryFree(src)
  library.memoryFree(dst)
})

test('a batch of copies: each piece lands where it should; a piece that is refused says which', () => {
  const contents = [pattern(MIB, 3), pattern(1000, 5)]
  const buffers = contents.map(bufferWith)
  const memories = [library.memoryAlloc(0, MIB), library.memoryAlloc(0, 4096)]
  const stream = library.streamCreate(0)
  for (const memory of memories) library.memoryFill(memory, 0, 4096, 0xab)
  const pieces = [
    [0, 0, 0, 0, MIB - 500, 0, 500, 1],
    [1, 96, 0, 1, 0, 0, 1000, 1],
    [0, 1000, 0, 0, 7, 0, 1, 1],
    [1, 4096, 0, 0, MIB, 0, 0, 1],
    [1, 0, 0, 0, 100, 0, 96, 1],
    [0, 1100, 96, 0, 5000, 768, 96, 20],
    [1, 2000, 10, 1, 9, 32, 7, 31],
    [0, 3996, 0, 1, 900, 0, 100, 1],
  ].map(
    ([memory, memoryOffset, memoryPitch, buffer, bufferOffset, bufferPitch, width, height]) => ({
      memory: memories[memory!]!,
      memoryOffset: memoryOffset!,
      memoryPitch: memoryPitch!,
      buffer: buffers[buffer!]!,
      bufferOffset: bufferOffset!,
      bufferPitch: bufferPitch!,
      width: width!,
      height: height!,
    }),
  )
  const refuses = (change: Partial<H2dPiece>, status: number) => {
    const wrong = [pieces[0]!, { ...pieces[1]!, ...change }, pieces[2]!]
    const error = failure(() => library.copyH2dBatch(stream, wrong))
    expect([error.symbol, error.nativeStatus]).toEqual(['ckpt_copy_h2d_batch', status])
    expect(error.message).toContain('piece 1: ')
  }
  refuses({ memoryOffset: 3097 }, 2)
  refuses({ bufferOffset: 1 }, 2)
  refuses({ memory: 4242 }, 3)
  refuses({ buffer: 4242 }, 3)
  refuses({ width: 90, height: 2, bufferPitch: 100, memoryPitch: 89 }, 2)
  refuses({ width: 90, height: 2, bufferPitch: 911, memoryPitch: 90 }, 2)
  library.streamSync(stream, 0, WAIT_MS)
  const expected = [new Uint8Array(4096).fill(0xab), new Uint8Array(4096).fill(0xab)]
  const seen = () => memories.map((memory) => hex(library.memorySha256(memory, 0, 4096)))
  expect(seen()).toEqual(expected.map(sha256))
  library.copyH2dBatch(stream, [])
  library.copyH2dBatch(stream, pieces)
  library.streamSync(stream, 0, WAIT_MS)
  for (const { memory, buffer, width, height, ...at } of pieces) {
    for (let row = 0; row < height; row++) {
      const begin = at.bufferOffset + row * at.bufferPitch
      const from = contents[buffers.indexOf(buffer)]!.subarray(begin, begin + width)
      expected[memories.indexOf(memory)]!.set(from, at.memoryOffset + row * at.memoryPitch)
    }
  }
  expect(seen()).toEqual(expected.map(sha256))
  library.streamDestroy(stream)
  for (const memory of memories) library.memoryFree(memory)
  for (const buffer of buffers) library.bufferFree(buffer)
})

test('rows of a buffer: they land where they should and nowhere else', () => {
  const content = pattern(MIB, 7)
  const buffer = bufferWith(content)
  const memory = library.memoryAlloc(0, MIB)
  const stream = library.streamCreate(0)
  library.memoryFill(memory, 0, MIB, 0xab)
  library.copyH2d2d(stream, memory, 1000, 700, buffer, 30, 1536, 192, 600)
  library.copyH2d2d(stream, memory, MIB, 192, buffer, MIB, 192, 192, 0)
  library.copyH2d2d(stream, memory, MIB, 192, buffer, MIB, 192, 0, 600)
  library.streamSync(stream, 0, WAIT_MS)
  const expected = new Uint8Array(MIB).fill(0xab)
  for (let row = 0; row < 600; row++) {
    const at = 30 + row * 1536
    expected.set(content.subarray(at, at + 192), 1000 + row * 700)
  }
  expect(hex(library.memorySha256(memory, 0, MIB))).toBe(sha256(expected))
  const refused = [
    () => library.copyH2d2d(stream, memory, 0, 191, buffer, 0, 192, 192, 2),
    () => library.copyH2d2d(stream, memory, 0, 192, buffer, 0, 191, 192, 2),
    () => library.copyH2d2d(stream, memory, 0, MIB - 191, buffer, 0, 192, 192, 2),
    () => library.copyH2d2d(stream, memory, 0, 192, buffer, 0, MIB - 191, 192, 2),
  ]
  for (const copy of refused) {
    const { code, symbol, nativeStatus } = failure(copy)
    expect([code, symbol, nativeStatus]).toEqual(['internal', 'ckpt_copy_h2d_2d', 2])
  }
  library.streamDestroy(stream)
  library.memoryFree(memory)
  library.bufferFree(buffer)
})

/** What a gather of these pieces makes of `before`; `contents`: of each source, by its handle. */
function gathered(
  before: Uint8Array,
  contents: ReadonlyMap<number, Uint8Array>,
  pieces: readonly GatherPiece[],
): Uint8Array {
  const bytes = before.slice()
  for (const piece of pieces) {
    const content = contents.get(piece.srcBuffer)!
    for (let row = 0; row < piece.height; row++) {
      const at = piece.srcOffset + row * piece.srcPitch
      bytes.set(content.subarray(at, at + piece.width), piece.dstOffset + row * piece.dstPitch)
    }
  }
  return bytes
}

test('a gather: contiguous and pitched pieces of buffers and a mapped file, also over each other', () => {
  const [first, second, inFile] = [pattern(MIB, 7), pattern(5000, 3), pattern(MIB, 11)]
  const before = pattern(MIB, 13)
  const file = library.fileOpen(fileWith('gathered.bin', inFile))
  library.fileLease(file, 0)
  const [a, b, mapped] = [bufferWith(first), bufferWith(second), library.bufferMap(file)]
  const contents = new Map([
    [a, first],
    [b, second],
    [mapped, inFile],
  ])
  const dst = bufferWith(before)
  const one = { srcPitch: 0, dstPitch: 0, height: 1 }
  const pieces: GatherPiece[] = [
    { ...one, srcBuffer: a, srcOffset: 17, dstOffset: 3, width: 384 },
    { ...one, srcBuffer: b, srcOffset: 4999, dstOffset: MIB - 1, width: 1 },
    {
      srcBuffer: a,
      srcOffset: 30,
      srcPitch: 1536,
      dstOffset: 1000,
      dstPitch: 192,
      width: 192,
      height: 600,
    },
    {
      srcBuffer: mapped,
      srcOffset: 1,
      srcPitch: 300,
      dstOffset: 200_000,
      dstPitch: 700,
      width: 299,
      height: 900,
    },
    {
      srcBuffer: b,
      srcOffset: 0,
      srcPitch: 50,
      dstOffset: 900_000,
      dstPitch: 50,
      width: 50,
      height: 100,
    },
    { ...one, srcBuffer: mapped, srcOffset: 9, dstOffset: 900_100, width: 1000 },
    { ...one, srcBuffer: a, srcOffset: 0, dstOffset: 900_500, width: 7 },
    { ...one, srcBuffer: a, srcOffset: MIB, dstOffset: MIB, width: 0 },
    { ...one, srcBuffer: a, srcOffset: MIB, dstOffset: MIB, width: 8, height: 0 },
  ]
  library.bufferGather(dst, pieces)
  const expected = sha256(gathered(before, contents, pieces))
  expect(hex(library.bufferSha256(dst, 0, MIB))).toBe(expected)
  library.bufferGather(dst, [])
  expect(hex(library.bufferSha256(dst, 0, MIB))).toBe(expected)
  for (const buffer of [a, b, mapped, dst]) library.bufferFree(buffer)
  library.fileClose(file)
})

test('a gather of a wrong piece says which one it is, and writes nothing', () => {
  const content = pattern(10_000, 7)
  const [src, dst, stale] = [bufferWith(content), bufferWith(content), bufferWith(content)]
  library.bufferFree(stale)
  const file = library.fileOpen(fileWith('read-only.bin', content))
  library.fileLease(file, 0)
  const mapped = library.bufferMap(file)
  const good = {
    srcBuffer: src,
    srcOffset: 0,
    srcPitch: 20,
    dstOffset: 500,
    dstPitch: 30,
    width: 20,
    height: 9,
  }
  const refuses = (change: Partial<GatherPiece>, status: number, to = dst) => {
    const error = failure(() => library.bufferGather(to, [good, { ...good, ...change }, good]))
    expect([error.code, error.symbol]).toEqual(['internal', 'ckpt_buffer_gather'])
    expect([change, error.nativeStatus]).toEqual([change, status])
    return error.message
  }
  const wrong: Partial<GatherPiece>[] = [
    { srcOffset: 10_000 - 9 * 20 + 1 },
    { dstOffset: 10_000 - 8 * 30 - 19 },
    { srcPitch: 19 },
    { dstPitch: 19 },
    { width: 21 },
    { height: 501 },
    { height: 2 ** 53 - 1, srcPitch: 2 ** 53 - 1, dstPitch: 2 ** 53 - 1 },
    { srcOffset: 2 ** 53 - 1 },
    { srcOffset: 10_001, height: 0 },
    { srcBuffer: dst },
  ]
  for (const change of wrong) expect(refuses(change, 2)).toStartWith('piece 1: ')
  for (const srcBuffer of [stale, 0, file])
    expect(refuses({ srcBuffer }, 3)).toStartWith('piece 1: ')
  refuses({}, 2, mapped)
  refuses({}, 3, stale)
  for (const number of [-1, 1.5, Number.NaN, 2 ** 53]) {
    for (const field of Object.keys(good)) {
      const piece = { ...good, [field]: number }
      expect(() => library.bufferGather(dst, [good, piece])).toThrow(RangeError)
    }
  }
  expect(() => library.bufferGather(dst, [{ ...good, srcBuffer: src + 2 ** 32 }])).toThrow(
    RangeError,
  )
  expect(() => library.bufferGather(2 ** 32, [good])).toThrow(RangeError)
  expect(hex(library.bufferSha256(dst, 0, content.length))).toBe(sha256(content))
  for (const buffer of [src, dst, mapped]) library.bufferFree(buffer)
  library.fileClose(file)
})

test('a gather out of a mapped file that has changed is file_changed', () => {
  const path = fileWith('gathered-late.bin', pattern(1000, 7))
  const file = library.fileOpen(path)
  const signal = library.signalCreate()
  library.fileLease(file, signal)
  const [mapped, dst] = [library.bufferMap(file), bufferWith(pattern(1000, 3))]
  truncateSync(path, 10)
  library.signalWait(signal, WAIT_MS)
  const piece = {
    srcBuffer: mapped,
    srcOffset: 0,
    srcPitch: 0,
    dstOffset: 0,
    dstPitch: 0,
    width: 5,
    height: 1,
  }
  expect(failure(() => library.bufferGather(dst, [piece])).code).toBe('file_changed')
  expect(hex(library.bufferSha256(dst, 0, 1000))).toBe(sha256(pattern(1000, 3)))
  for (const buffer of [mapped, dst]) library.bufferFree(buffer)
  library.signalDestroy(signal)
  library.fileClose(file)
})

test('signals: bits are sticky, the fd wakes a poll, the abort bit ends a wait', () => {
  const signal = library.signalCreate()
  const fd = library.signalFd(signal)
  expect(zmqPoll([{ fd }], 0)).toEqual([false])
  library.signalRaise(signal, SIGNAL_HTTP)
  expect(zmqPoll([{ fd }], 1000)).toEqual([true])
  expect(library.signalTake(signal)).toBe(SIGNAL_HTTP)
  expect(zmqPoll([{ fd }], 0)).toEqual([false])
  library.signalRaise(signal, SIGNAL_USER)
  expect(library.signalWait(signal, 1000)).toBe(SIGNAL_HTTP | SIGNAL_USER)
  expect(failure(() => library.signalWait(signal, 5)).code).toBe('update_timeout')
  library.signalRaise(signal, SIGNAL_ABORT)
  expect(failure(() => library.signalWait(signal, 1000)).code).toBe('aborted')
  library.signalReset(signal)
  library.signalRaise(signal, 0)
  expect(library.signalWait(signal, 1000)).toBe(0)
  library.signalDestroy(signal)
  const stale = failure(() => library.signalRaise(signal, 0))
  expect([stale.code, stale.symbol, stale.nativeStatus]).toEqual([
    'internal',
    'ckpt_signal_raise',
    3,
  ])
})

test('an event orders two streams and wakes a signal', () => {
  const [first, second] = [library.streamCreate(0), library.streamCreate(1)]
  const content = pattern(32 * MIB, 3)
  const buffer = bufferWith(content)
  const [a, b] = [library.memoryAlloc(0, content.length), library.memoryAlloc(1, content.length)]
  const event = library.eventCreate(0)
  const signal = library.signalCreate()
  library.copyH2d(first, a, 0, buffer, 0, content.length)
  library.eventRecord(event, first)
  library.eventNotify(event, signal)
  library.streamWaitEvent(second, event)
  library.copyDevice(second, b, a, [{ dstOffset: 0, srcOffset: 0, bytes: content.length }])
  library.streamSync(second, 0, WAIT_MS)
  expect(library.eventQuery(event)).toBe(true)
  library.eventWait(event, 0, 1000)
  expect(library.signalWait(signal, WAIT_MS)).toBe(0)
  expect(hex(library.memorySha256(b, 0, content.length))).toBe(sha256(content))
  for (const stream of [first, second]) library.streamDestroy(stream)
  library.eventDestroy(event)
  library.signalDestroy(signal)
  for (const memory of [a, b]) library.memoryFree(memory)
  library.bufferFree(buffer)
})

test('an abort from elsewhere ends a wait for a stream', () => {
  const signal = library.signalCreate()
  const group = library.groupCreate(2)
  const stream = library.streamCreate(0)
  const memory = library.memoryAlloc(0, MIB)
  library.groupJoin(group, 0, stream, memory)
  // The other member never joins in, so this broadcast stays pending.
  library.groupBroadcast(group, 0, 1, 0, MIB)
  const event = library.eventCreate(0)
  library.eventRecord(event, stream)
  expect(library.eventQuery(event)).toBe(false)
  expect(failure(() => library.eventWait(event, signal, 20)).code).toBe('update_timeout')
  expect(failure(() => library.streamSync(stream, signal, 20)).code).toBe('update_timeout')
  library.signalRaise(signal, SIGNAL_ABORT)
  expect(failure(() => library.streamSync(stream, signal, WAIT_MS)).code).toBe('aborted')
  library.groupAbort(group)
  expect(failure(() => library.streamSync(stream, 0, WAIT_MS)).code).toBe('aborted')
  expect(failure(() => library.eventQuery(event)).code).toBe('aborted')
  library.eventDestroy(event)
  library.groupDestroy(group)
  library.streamDestroy(stream)
  library.memoryFree(memory)
  library.signalDestroy(signal)
})

test('a broadcast among three ranks, two of them on one device', () => {
  const content = pattern(2 * MIB, 13)
  const buffer = bufferWith(content)
  const group = library.groupCreate(3)
  const members = [0, 1, 1].map((device, member) => {
    const stream = library.streamCreate(device)
    const memory = library.memoryAlloc(device, content.length)
    library.memoryFill(memory, 0, content.length, 0)
    library.groupJoin(group, member, stream, memory)
    return { stream, memory }
  })
  const half = content.length / 2
  // Rank 0 sends the first half, rank 2 the second.
  library.copyH2d(members[0]!.stream, members[0]!.memory, 0, buffer, 0, half)
  library.copyH2d(members[2]!.stream, members[2]!.memory, half, buffer, half, half)
  for (const [root, offset] of [
    [0, 0],
    [2, half],
  ] as const) {
    for (const member of [2, 0, 1]) library.groupBroadcast(group, member, root, offset, half)
  }
  for (const { stream } of members) library.streamSync(stream, 0, WAIT_MS)
  for (const { memory } of members) {
    expect(hex(library.memorySha256(memory, 0, content.length))).toBe(sha256(content))
  }
  library.groupDestroy(group)
  for (const { stream, memory } of members) {
    library.streamDestroy(stream)
    library.memoryFree(memory)
  }
  library.bufferFree(buffer)
})

test('files: describe, read a header, hash a range, read pieces by several threads', () => {
  const content = pattern(5 * MIB + 3, 5)
  const path = fileWith('model.bin', content)
  const file = library.fileOpen(path)
  const info = library.fileDescribe(file)
  expect(info.bytes).toBe(content.length)
  expect(info.inode).toBeGreaterThan(0n)
  expect(info.leased).toBe(false)
  const { filesystem, cachedFraction } = library.fileLocate(file)
  expect(filesystem).toBeGreaterThan(0)
  // it was just written
  expect(cachedFraction ?? 1).toBe(1)
  expect([true, false]).toContain(library.fileDirect(file))
  expect(library.fileRead(file, 9, 20)).toEqual(content.subarray(9, 29))
  expect(library.fileRead(file, 0, 0)).toHaveLength(0)
  expect(failure(() => library.fileRead(file, content.length - 3, 4)).code).toBe('file_unreadable')
  expect(hex(library.fileSha256(file, 77, 1000))).toBe(sha256(content.subarray(77, 1077)))

  const buffer = library.bufferAlloc(content.length, 0)
  const signal = library.signalCreate()
  const cut = 2 * MIB + 1
  const pieces = [
    { file, buffer, fileOffset: cut, bufferOffset: 0, bytes: content.length - cut },
    { file, buffer, fileOffset: 0, bufferOffset: content.length - cut, bytes: cut },
  ]
  const read = library.readStart(pieces, 4, signal)
  library.readWait(read, 0, WAIT_MS)
  expect(library.readQuery(read)).toEqual({
    bytesTotal: content.length,
    bytesDone: content.length,
    piecesTotal: 2,
    piecesPrefix: 2,
    state: 'done',
    failedPiece: 0,
  })
  expect(library.signalWait(signal, 1000)).toBe(0)
  library.readDestroy(read)
  const expected = Buffer.concat([content.subarray(cut), content.subarray(0, cut)])
  expect(hex(library.bufferSha256(buffer, 0, content.length))).toBe(sha256(expected))
  expect(library.bufferBytes(buffer)).toBeGreaterThanOrEqual(content.length)
  library.signalDestroy(signal)
  library.bufferFree(buffer)
  library.fileClose(file)
})

test('a read beyond the end of a file names the piece, the path and the reason', () => {
  const path = fileWith('short.bin', pattern(1000, 3))
  const file = library.fileOpen(path)
  const buffer = library.bufferAlloc(4096, 0)
  const piece = { file, buffer, bufferOffset: 0 }
  const read = library.readStart(
    [
      { ...piece, fileOffset: 0, bytes: 500 },
      { ...piece, fileOffset: 900, bytes: 200 },
    ],
    1,
    0,
  )
  const error = failure(() => library.readWait(read, 0, WAIT_MS))
  expect(error.code).toBe('file_unreadable')
  expect(library.readQuery(read)).toMatchObject({ state: 'failed', failedPiece: 1 })
  expect(library.readError(read)).toContain(path)
  library.readDestroy(read)
  library.bufferFree(buffer)
  library.fileClose(file)
})

test('a missing file is file_not_found, with its path', () => {
  const error = failure(() => library.fileOpen(join(dir, 'absent.bin')))
  expect(error.code).toBe('file_not_found')
  expect(error.message).toContain('absent.bin')
  expect(() => library.fileOpen('a\0b')).toThrow(RangeError)
})

test('a leased file is mapped in place; a change breaks it', async () => {
  const content = pattern(MIB, 9)
  const path = fileWith('leased.bin', content)
  const file = library.fileOpen(path)
  const signal = library.signalCreate()
  library.fileLease(file, signal)
  expect(library.fileDescribe(file).leased).toBe(true)
  library.fileCheck(file)
  const buffer = library.bufferMap(file)
  const memory = library.memoryAlloc(0, MIB)
  const stream = library.streamCreate(0)
  library.copyH2d(stream, memory, 0, buffer, 0, MIB)
  library.streamSync(stream, 0, WAIT_MS)
  expect(hex(library.memorySha256(memory, 0, MIB))).toBe(sha256(content))

  truncateSync(path, 10)
  expect(library.signalWait(signal, WAIT_MS)).toBe(0)
  expect(failure(() => library.fileCheck(file)).code).toBe('file_changed')
  const late = failure(() => {
    library.copyH2d(stream, memory, 0, buffer, 0, MIB)
    library.streamSync(stream, 0, WAIT_MS)
  })
  expect(late.code).toBe('file_changed')
  library.streamDestroy(stream)
  library.memoryFree(memory)
  library.bufferFree(buffer)
  library.fileClose(file)
  library.signalDestroy(signal)
})

test('a lease on a file that somebody has open for writing is refused', () => {
  const path = fileWith('written.bin', pattern(100, 3))
  const writer = Bun.file(path).writer()
  writer.write('x')
  writer.flush()
  const file = library.fileOpen(path)
  expect(failure(() => library.fileLease(file, 0)).code).toBe('checkpoint_busy')
  library.fileClose(file)
  writer.end()
})

test('a shared buffer has a path while it lives; the reference counter is torch-shaped', async () => {
  const buffer = library.bufferAlloc(MIB, BUFFER_SHARED)
  const path = library.bufferPath(buffer)
  expect(path).toStartWith('/dev/shm/ckpt-')
  expect(existsSync(path)).toBe(true)
  library.bufferFree(buffer)
  expect(existsSync(path)).toBe(false)

  const { refcounter, name } = library.refcounterCreate()
  const counts = new BigInt64Array(await Bun.file(`/dev/shm${name}`).arrayBuffer())
  expect(counts[0]).toBe(1n)
  expect(counts.slice(8, 8 + 10_000).every((count) => count === 1n)).toBe(true)
  library.refcounterDestroy(refcounter)
  expect(existsSync(`/dev/shm${name}`)).toBe(false)
})

test('memory near a NUMA node is a buffer like any, and a thread is not bound on a machine with one node', () => {
  const { buffer, placed } = library.bufferAllocNear(MIB, 0)
  expect(library.bufferBytes(buffer)).toBe(MIB)
  library.bufferFree(buffer)
  const anywhere = library.bufferAllocNear(MIB, -1)
  expect(anywhere.placed).toBe(false)
  library.bufferFree(anywhere.buffer)
  expect(library.threadBind(-1)).toBe(false)
  expect(() => library.threadBind(-2)).toThrow(NativeError)
  if (numaNodeCount() !== 1) return
  expect(placed).toBe(false)
  expect(library.threadBind(0)).toBe(false)
})

test('NUMA nodes are counted where the kernel tells of them', () => {
  const root = join(dir, 'nodes')
  for (const name of ['node0', 'node12', 'power']) mkdirSync(join(root, name), { recursive: true })
  expect(numaNodeCount(root)).toBe(2)
  expect(numaNodeCount(join(root, 'node0'))).toBeNull()
  expect(numaNodeCount(join(root, 'nothing'))).toBeNull()
})

test('memory that is not there is refused with the code of its kind', () => {
  expect(failure(() => library.memoryAlloc(0, 2 ** 50)).code).toBe('device_memory_exhausted')
  expect(failure(() => library.bufferAlloc(2 ** 50, 0)).code).toBe('host_memory_exhausted')
  const nowhere = new Uint8Array(64)
  nowhere.set(new TextEncoder().encode('/ckpt-nowhere'))
  expect(failure(() => library.memoryOpen(0, nowhere, 4096)).code).toBe('device_error')
})

test('numbers that would wrap are refused before the call', () => {
  for (const bytes of [-1, 1.5, Number.NaN, 2 ** 53, Number.POSITIVE_INFINITY]) {
    expect(() => library.memoryAlloc(0, bytes)).toThrow(RangeError)
  }
  expect(() => library.memoryAlloc(2 ** 32, 4096)).toThrow(RangeError)
  expect(() => library.memoryOpen(0, new Uint8Array(10), 4096)).toThrow(RangeError)
  const pieces = [{ dstOffset: 0, srcOffset: 2 ** 53, bytes: 1 }]
  expect(() => library.copyDevice(1, 1, 1, pieces)).toThrow(RangeError)
  expect(() => library.copyH2d2d(1, 1, 0, 8, 1, 0, 8, 8, -1)).toThrow(RangeError)
  const from = { buffer: 1, bufferOffset: 0, bufferPitch: 1, width: 1, height: 1 }
  const piece = { memory: 1, memoryOffset: 0, memoryPitch: 1, ...from }
  for (const change of [{ memory: 2 ** 32 }, { buffer: -1 }, { height: 2 ** 53 }]) {
    expect(() => library.copyH2dBatch(1, [{ ...piece, ...change }])).toThrow(RangeError)
  }
})

test('settings reach getenv of the process, which process.env does not', () => {
  let getenv: (name: Uint8Array) => unknown
  try {
    const table = { getenv: { args: ['buffer'], returns: 'cstring' } } as const
    getenv = dlopen('libc.so.6', table).symbols.getenv
  } catch {
    return console.log('skipped: no libc.so.6')
  }
  library.setenv('CKPT_TEST_SETENV', 'seen')
  expect(String(getenv(new TextEncoder().encode('CKPT_TEST_SETENV\0')))).toBe('seen')
  expect(() => library.setenv('A\0', 'x')).toThrow(RangeError)
})

test('CUDA gets enough connections for our streams, unless the user has chosen', async () => {
  const script = `
    const { dlopen } = await import('bun:ffi')
    const { openLibrary } = await import(${JSON.stringify(join(import.meta.dir, 'library.ts'))})
    // without a driver it is set all the same, and then the library refuses
    try { openLibrary({ kind: 'cuda' }) } catch (error) { if (error.code === 'native_missing') process.exit(3) }
    const table = { getenv: { args: ['buffer'], returns: 'cstring' } }
    const { getenv } = dlopen('libc.so.6', table).symbols
    console.log(String(getenv(new TextEncoder().encode('CUDA_DEVICE_MAX_CONNECTIONS\\0'))))`
  const seen = async (told: Record<string, string>) => {
    const { CUDA_DEVICE_MAX_CONNECTIONS: _, ...rest } = process.env
    const child = Bun.spawn([process.execPath, '-e', script], { env: { ...rest, ...told } })
    const text = await new Response(child.stdout).text()
    return (await child.exited) === 3 ? null : text.trim()
  }
  const own = await seen({})
  if (own === null) return console.log('skipped: the CUDA library does not load here')
  expect(own).toBe('32')
  expect(await seen({ CUDA_DEVICE_MAX_CONNECTIONS: '4' })).toBe('4')
})

test('a library that is missing or does not fit says how to build it', async () => {
  const before = process.env.CKPT_LIBRARY_DIR
  const empty = mkdtempSync(join(dir, 'empty-'))
  process.env.CKPT_LIBRARY_DIR = empty
  try {
    const missing = () => openSymbols('host')
    expect(missing).toThrow(CkptError)
    expect(missing).toThrow(/libckpt_host.so is not there: build it with `npm run setup`/)
    await Bun.write(join(empty, 'libckpt_host.so'), 'not a library')
    expect(missing).toThrow(/cannot be loaded .*npm run setup/)
    const compiler = Bun.which('cc') ?? Bun.which('g++')
    if (compiler === null) return
    const names = Object.keys((await import('./generated.ts')).SYMBOLS)
    const source = names.map((name) => `int ${name}(void) { return 99; }`).join('\n')
    await Bun.write(join(empty, 'odd.c'), source)
    await Bun.$`${compiler} -xc -shared -fPIC -o ${join(empty, 'libckpt_host.so.new')} ${join(empty, 'odd.c')}`
    await Bun.$`mv ${join(empty, 'libckpt_host.so.new')} ${join(empty, 'libckpt_host.so')}`
    expect(missing).toThrow(/ABI version 99, not \d/)
  } finally {
    if (before === undefined) delete process.env.CKPT_LIBRARY_DIR
    else process.env.CKPT_LIBRARY_DIR = before
  }
})

test('CKPT_TRACE_FFI=1 prints calls, p50 and p99 of each symbol at exit', async () => {
  const script = join(dir, 'traced.ts')
  await Bun.write(
    script,
    `import { openLibrary } from '${join(import.meta.dir, 'library.ts')}'
     const library = openLibrary({ kind: 'host' })
     for (let i = 0; i < 10; i++) library.memoryFree(library.memoryAlloc(0, 4096))`,
  )
  const child = Bun.spawn([process.execPath, script], {
    env: { ...process.env, CKPT_TRACE_FFI: '1' },
    stderr: 'pipe',
  })
  const text = await new Response(child.stderr).text()
  expect(text).toMatch(/calls\s+p50 us\s+p99 us/)
  expect(text).toMatch(/ckpt_memory_alloc\s+10\s+\d+\.\d+\s+\d+\.\d+/)
})

test('devices of ranks: keys, sharing, what is refused', () => {
  const two = selectDevices('host', 2)
  expect(two.library).toEqual({ kind: 'host', hostDevices: 2 })
  expect(two.ranks.map((rank) => rank.device)).toEqual([0, 1])
  expect(two.ranks.map((rank) => rank.key)).toEqual(two.ranks.map((rank) => rank.uuid))
  const shared = selectDevices('host:2', 3)
  expect(shared.ranks.map((rank) => rank.device)).toEqual([0, 1, 0])
  const uuids = two.ranks.map((rank) => rank.uuid)
  expect(shared.ranks.map((rank) => rank.key)).toEqual([
    `${uuids[0]}#0`,
    uuids[1] as string,
    `${uuids[0]}#2`,
  ])
  expect(selectDevices('host', null).ranks).toHaveLength(1)
  expect(selectDevices('host:4', null).ranks).toHaveLength(4)
  for (const spec of ['', 'gpu', 'host:', 'host:0', 'host:65', 'host:1,2', 'auto:1', 'cuda:a']) {
    expect(() => selectDevices(spec, null)).toThrow(CkptError)
  }
  expect(() => selectDevices('host', 0)).toThrow(CkptError)
})
