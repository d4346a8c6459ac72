/** Direct placement from end to end on the host library: the worker's map, our plan of it, copies into its parameters. */
import { expect, test } from 'bun:test'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { buildTable, dtypeIndex } from '@ckpt/core'
import { decodePlacementMap } from '@ckpt/core/placement/placement-map'
import { planDirect } from '@ckpt/core/placement/plan-direct'
import { openLibrary, selectDevices, ZmqContext } from '@ckpt/cuda'
import { readHeader } from 'ckpt/cli/checkpoint-files'
import { DaemonSide } from 'ckpt/engines/reference/testing/scripted-daemon'
import { randomTensor, writeSafetensors } from './support/checkpoint.ts'
import { python, ROOT, run, scratch } from './support/process.ts'

const PYTHON = python()
const ENGINE = join(ROOT, 'test/python/direct_engine.py')
const PYTHONPATH = join(ROOT, 'python/ckpt_worker')
const LENGTH_BYTES = 4
const WAIT_MS = 30_000

function pack(head: object): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(head))
  const message = new Uint8Array(LENGTH_BYTES + json.length)
  new DataView(message.buffer).setUint32(0, json.length, true)
  message.set(json, LENGTH_BYTES)
  return message
}

function unpack(message: Uint8Array): { head: any; body: Uint8Array } {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength)
  const end = LENGTH_BYTES + view.getUint32(0, true)
  const json = new TextDecoder().decode(message.subarray(LENGTH_BYTES, end))
  return { head: JSON.parse(json), body: message.subarray(end) }
}

function writeVersion(path: string, seed: number): string {
  writeSafetensors(path, [
    ...['q', 'k', 'v'].map((name) => randomTensor(seed, name, 'BF16', 2, 64, 48)),
    randomTensor(seed, 'down', 'BF16', 2, 48, 30),
    ...[0, 1, 2].map((i) => randomTensor(seed, `expert${i}`, 'I32', 4, 12, 40)),
    randomTensor(seed, 'norm', 'F16', 2, 33),
    randomTensor(seed, 'ignored', 'F16', 2, 5),
  ])
  return path
}

/** A file in one buffer, which is the source space of its table. */
async function hold(path: string, stack: DisposableStack) {
  const library = openLibrary(selectDevices('host', 1).library)
  const { size } = statSync(path)
  const buffer = library.bufferAlloc(size, 0)
  stack.defer(() => library.bufferFree(buffer))
  const file = library.fileOpen(path)
  stack.defer(() => library.fileClose(file))
  const piece = { file, buffer, fileOffset: 0, bufferOffset: 0, bytes: size }
  const read = library.readStart([piece], 1, 0)
  stack.defer(() => library.readDestroy(read))
  library.readWait(read, 0, WAIT_MS)
  const { tensors } = await readHeader(path)
  const rows = tensors.map(({ name, dtype, shape, bytes, begin }) => {
    const index = typeof dtype === 'number' ? dtype : dtypeIndex(dtype)
    return { name, dtype: index, shape, bytes, owner: 0, offset: begin }
  })
  const sources = [{ starts: Float64Array.of(0), bytes: Float64Array.of(size) }]
  return { library, buffer, table: buildTable(rows), sources }
}

test.skipIf(PYTHON === null)(
  'a checkpoint goes straight into the parameters of an engine that has recorded another version',
  async () => {
    const dir = scratch()
    using stack = new DisposableStack()
    stack.defer(() => dir.remove())
    const first = writeVersion(join(dir.path, 'first.safetensors'), 1)
    const next = writeVersion(join(dir.path, 'next.safetensors'), 2)
    const { library, buffer, table, sources } = await hold(next, stack)
    const context = new ZmqContext()
    const daemon = new DaemonSide(context, `ipc://${join(dir.path, 'rank.sock')}`)
    const engine = run([PYTHON!, ENGINE, daemon.address, first, next], { PYTHONPATH })
    expect(await daemon.saw('connected', WAIT_MS)).toBe(true)

    await daemon.send(pack({ type: 'look', map: null }))
    const { head, body } = unpack(await daemon.reply(WAIT_MS))
    expect(head).toMatchObject({ ok: true })
    const map = decodePlacementMap(body)
    const plan = planDirect(map, table, sources)
    if ('reason' in plan) throw new Error(plan.reason)
    await daemon.send(pack({ type: 'begin', generation: head.generation }))
    expect(unpack(await daemon.reply()).head).toEqual({ ok: true })

    const opened = (head.handles as string[]).map((handle, i) =>
      library.memoryOpen(0, Uint8Array.fromHex(handle), map.allocationBytes[i]!),
    )
    const stream = library.streamCreate(0)
    for (const copy of plan.copies) {
      const { source, sourcePitch, destination, destinationPitch, width, height } = copy
      const memory = opened[copy.allocation]!
      const to = [memory, destination, destinationPitch] as const
      library.copyH2d2d(stream, ...to, buffer, source, sourcePitch, width, height)
    }
    library.streamSync(stream, 0, WAIT_MS)
    library.streamDestroy(stream)
    for (const memory of opened) library.memoryFree(memory)
    await daemon.send(pack({ type: 'end' }))
    expect(unpack(await daemon.reply()).head).toEqual({ ok: true })

    const { status, stdout, stderr } = await engine
    daemon.close()
    context.close()
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    expect(JSON.parse(stdout)).toEqual({ wrong: [], events: ['torn', 'hook', 'whole'] })
  },
  60_000,
)
