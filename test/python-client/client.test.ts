/** The trainer's Python client against a real daemon and the reference engine, each a process of its own, with real torch. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DTYPES, naturalOrder, type UpdateReport } from '@ckpt/core'
import { randomTensor, type ShownTensor, writeSafetensors } from '../support/checkpoint.ts'
import {
  CKPT,
  python,
  ROOT,
  request,
  run,
  type Scratch,
  type Started,
  scratch,
  start,
} from '../support/process.ts'

const PYTHON = python()
if (PYTHON === null) console.log('skipped: no Python with torch (see .ci/run)')
const TRAINER = join(ROOT, 'test/python-client/trainer.py')
const CLIENT = join(ROOT, 'python/ckpt_client')
const TOKEN = 'a-token-of-this-test'
const TIMEOUT_MS = 120_000

let dir: Scratch
let daemon: Started
let engine: Started
let socket: string
let url: string
let tcp: string

beforeAll(async () => {
  if (PYTHON === null) return
  dir = scratch()
  socket = join(dir.path, 'ckpt.sock')
  const tokenFile = join(dir.path, 'token')
  writeFileSync(tokenFile, TOKEN, { mode: 0o600 })
  const listen = ['--uds', socket, '--listen', '127.0.0.1:0', '--token-file', tokenFile]
  const state = ['--state-dir', join(dir.path, 'state'), '--devices', 'host']
  daemon = await start([...CKPT, 'serve', ...listen, ...state], /ready at.*http:\/\/(\S+:\d+)/)
  tcp = daemon.ready[1]!
}, TIMEOUT_MS)

// an engine keeps what an earlier update has brought
beforeEach(async () => {
  if (PYTHON === null) return
  const ready = /(http:\/\/\S+)/
  engine = await start([...CKPT, 'engine', '--listen', '127.0.0.1:0', '--devices', 'host'], ready)
  url = `${engine.ready[1]}/collective_rpc`
}, TIMEOUT_MS)

afterEach(async () => {
  if (PYTHON === null) return
  await engine?.stop()
  const { body } = await request(socket, 'GET', '/v1/checkpoints')
  for (const { name } of [...body.checkpoints, { name: 'm' }]) await drop(name)
})

afterAll(async () => {
  await daemon?.stop()
  dir?.remove()
})

const environment = () => ({ PYTHONPATH: CLIENT, CKPT_DAEMON: socket })

/** Runs a job of trainer.py and returns what it answers. */
const trainer = (job: string, ...more: string[]) => trainerAt(socket, job, ...more)

async function trainerAt(at: string, job: string, ...more: string[]): Promise<any> {
  const { status, stdout, stderr } = await run([PYTHON!, TRAINER, at, job, ...more], environment())
  if (status !== 0) throw new Error(stderr)
  return answerIn(stdout)
}

const answerIn = (output: string) => JSON.parse(/^answer (.*)$/m.exec(output)![1]!)

const startTrainer = (ready: RegExp, job: string, ...more: string[]) =>
  start([PYTHON!, TRAINER, socket, job, ...more], ready, environment())

type Shown = Record<string, ShownTensor>

async function engineTensors(): Promise<Shown> {
  const weights: any = await (await fetch(`${engine.ready[1]}/v1/weights`)).json()
  return weights.ranks[0].tensors
}

/** The daemon's shared memory, and its pinned bytes. */
async function memory(): Promise<{ shared: string[]; pinned: number }> {
  const { body } = await request(socket, 'GET', '/v1/status')
  const shared = readdirSync('/dev/shm').filter((name) => name.startsWith(`ckpt-${daemon.pid}-`))
  return { shared: shared.sort(), pinned: body.memory.pinned_bytes }
}

const drop = (name: string) => request(socket, 'DELETE', `/v1/checkpoints/${name}?force=true`)

/** Waits for what must come soon, for what is noticed only when the kernel tells. */
async function eventually(read: () => Promise<unknown>, wanted: unknown): Promise<void> {
  const deadlineMs = performance.now() + 10_000
  let seen = await read()
  while (!Bun.deepEquals(seen, wanted) && performance.now() < deadlineMs) {
    await Bun.sleep(20)
    seen = await read()
  }
  expect(seen).toEqual(wanted)
}

describe.skipIf(PYTHON === null)('ckpt_client', () => {
  test(
    'every dtype and layout is in the engine, byte for byte',
    async () => {
      const { expected, answer, report, regions } = await trainer('everything', url)
      expect(await engineTensors()).toEqual(expected)
      expect(Object.keys(expected)).toHaveLength(83)
      expect(answer).toMatchObject({ name: 'all', version: 'v 1', tensors: 83 })
      expect(report).toMatchObject({ version: 'v 1', engines: [{ result: 'ok', torn: false }] })
      expect(regions.length).toBeGreaterThan(2)
      // the version stays when its trainer has ended
      const { body } = await request(socket, 'GET', '/v1/checkpoints/all')
      expect(body).toMatchObject({ state: 'complete', tensors: 83 })
    },
    TIMEOUT_MS,
  )

  test(
    'versions replace each other, and memory does not grow on either side',
    async () => {
      const before = await memory()
      const { rounds, regions } = await trainer('versions', url, '7')
      for (const [version, round] of rounds.entries()) {
        expect(round.weights).toEqual(round.expected)
        expect(round.version).toBe(String(version))
      }
      const pinned = rounds.map((round: { pinned: number }) => round.pinned - before.pinned)
      // one version, then two: the one in the engine and the next; the last one is larger and takes other memory
      expect(pinned.slice(1, 6)).toEqual(Array(5).fill(2 * pinned[0]))
      expect(rounds.slice(1, 6).map((round: { regions: string[] }) => round.regions)).toEqual(
        Array(5).fill(rounds[1].regions),
      )
      expect(rounds[1].regions).toHaveLength(2 * rounds[0].regions.length)
      // what the daemon gave back to the system is unmapped too
      expect(regions).toEqual([])
      expect(await memory()).toEqual(before)
    },
    TIMEOUT_MS,
  )

  test(
    'a trainer that is killed while it writes leaves nothing behind, and the version held is served',
    async () => {
      const first = await trainer('pause', join(dir.path, 'ckpt.sock'))
      const before = await memory()
      const never = join(dir.path, 'never')
      const killed = await startTrainer(/writing (\d+)/, 'pause', never, 'child')
      const during = await memory()
      expect(during.shared.length).toBeGreaterThan(before.shared.length)
      expect(during.pinned).toBeGreaterThan(before.pinned)
      await killed.stop('SIGKILL')
      try {
        await eventually(memory, before)
      } finally {
        process.kill(Number(killed.ready[1]), 'SIGKILL')
      }
      const update = await request(socket, 'POST', '/v1/checkpoints/m/update', { update_url: url })
      expect(update.status).toBe(200)
      expect(await engineTensors()).toEqual(first.expected)
    },
    TIMEOUT_MS,
  )

  test(
    'a version is written while the one before is served',
    async () => {
      const flag = join(dir.path, 'go on')
      const path = join(dir.path, 'first.safetensors')
      const tensors = [randomTensor(1, 'w0', 'F32', 4, 10, 10)]
      writeSafetensors(path, tensors)
      const files = { files: [path], version: 'first' }
      await request(socket, 'POST', '/v1/checkpoints/m/files', files)
      const writer = await startTrainer(/writing/, 'pause', flag)
      const update = async (): Promise<UpdateReport> =>
        (await request(socket, 'POST', '/v1/checkpoints/m/update', { update_url: url })).body
      expect(await update()).toMatchObject({ version: 'first', tensors: 1 })
      expect(Object.keys(await engineTensors())).toEqual(['w0'])
      writeFileSync(flag, '')
      expect(await writer.exited).toBe(0)
      await eventually(async () => /^answer .*\n/m.test(writer.stderr()), true)
      const { expected } = answerIn(writer.stderr())
      expect(await update()).toMatchObject({ version: 'second', tensors: 20 })
      expect(await engineTensors()).toEqual(expected)
    },
    TIMEOUT_MS,
  )

  test(
    'a copy that fails leaves nothing mapped, and the next call works',
    async () => {
      const { left, pinned, answer } = await trainer('failing')
      expect({ left, pinned }).toEqual({ left: [], pinned: 0 })
      expect(answer.tensors).toBe(20)
    },
    TIMEOUT_MS,
  )

  test(
    'where memory holds one version only, the next one takes its place and says so',
    async () => {
      const small = join(dir.path, 'small.sock')
      const state = ['--state-dir', join(dir.path, 'small'), '--devices', 'host']
      const limited = ['--uds', small, '--host-memory-gib', '0.01', ...state]
      const other = await start([...CKPT, 'serve', ...limited], /ready at/)
      try {
        expect(await trainerAt(small, 'tight')).toEqual({ dropped: [false, true], regions: 1 })
      } finally {
        await other.stop()
      }
    },
    TIMEOUT_MS,
  )

  test(
    'what cannot be done is told in one line, and nothing is left of it',
    async () => {
      const before = await memory()
      const { answers, checkpoints, regions } = await trainer('refusals', url)
      const tensor = (message: string) => ({ code: 'bad_request', message, tensor: 'x' })
      expect(answers).toEqual({
        'unknown dtype': tensor(
          "tensor 'x' has the dtype complex128, which safetensors does not have",
        ),
        'unknown numpy dtype': tensor(
          "tensor 'x' has the dtype complex128, which safetensors does not have",
        ),
        'unknown buffer': tensor("tensor 'x' has the dtype 'c', which safetensors does not have"),
        'other byte order': tensor(
          "tensor 'x' has the dtype >f4, which is not of this machine's byte order",
        ),
        'no tensor': tensor(
          "tensor 'x' is a list: neither a torch tensor, nor a numpy array, nor a buffer",
        ),
        'no name': { code: 'bad_request', message: "a tensor's name must be a string, not 5" },
        sparse: tensor(
          "tensor 'x' is torch.sparse_coo on 'cpu'; it must be strided, on the CPU or a CUDA device",
        ),
        meta: tensor(
          "tensor 'x' is torch.strided on 'meta'; it must be strided, on the CPU or a CUDA device",
        ),
        subclass: tensor(
          "tensor 'x' is a FakeTensor: make it a plain tensor first (a DTensor's full_tensor() or to_local())",
        ),
        'held name': {
          code: 'checkpoint_exists',
          message: expect.stringContaining("'held' is registered already"),
          http_status: 409,
        },
        'too large': {
          code: 'host_memory_exhausted',
          message: expect.stringContaining("checkpoint 'm': "),
          http_status: 507,
        },
        'bad version': {
          code: 'bad_request',
          message: 'version must be at most length 255 (was 300)',
          http_status: 400,
        },
        'bad checkpoint': {
          code: 'bad_request',
          message: expect.stringContaining('without slashes'),
          http_status: 400,
        },
        'no such file': {
          code: 'file_not_found',
          message: expect.stringContaining('/none.safetensors'),
          phase: 'register',
          http_status: 400,
        },
        'no checkpoint': {
          code: 'checkpoint_not_found',
          message: "no checkpoint 'none' is registered",
          http_status: 404,
        },
        'unknown field': {
          code: 'bad_request',
          message: "unknown field 'update_urls'",
          http_status: 400,
        },
        'engine not there': {
          code: 'engine_unreachable',
          message: expect.any(String),
          rank: 0,
          phase: expect.any(String),
          http_status: 502,
        },
        'nobody listens': {
          code: 'daemon_unreachable',
          message: 'no daemon answers at unix:/nowhere/ckpt.sock: no such file or directory',
        },
        'nobody at a port': {
          code: 'daemon_unreachable',
          message: 'no daemon answers at http://127.0.0.1:9: connection refused',
        },
        'no address': {
          code: 'bad_request',
          message: "'nonsense' is neither a socket's path nor HOST:PORT",
        },
        'not a daemon': {
          code: 'daemon_unreachable',
          message: expect.stringContaining('is not a ckpt daemon: 404'),
          http_status: 404,
        },
      })
      for (const answer of Object.values<{ message: string }>(answers)) {
        expect(answer.message).not.toContain('\n')
      }
      expect(checkpoints).toEqual(['held'])
      expect(regions).toHaveLength(1)
      await drop('held')
      expect(await memory()).toEqual(before)
    },
    TIMEOUT_MS,
  )

  test(
    'every call, over the default socket and over TCP',
    async () => {
      const file = join(dir.path, 'calls.safetensors')
      writeSafetensors(file, [randomTensor(1, 'f', 'F32', 4, 2)])
      const out = await trainer('calls', file, url, tcp, TOKEN)
      expect(out).toEqual({
        files: expect.objectContaining({ version: 'f', tensors: 1, bytes: 8 }),
        empty: expect.objectContaining({ tensors: 0 }),
        module: [expect.objectContaining({ result: 'ok' })],
        tcp: expect.objectContaining({ name: 'tcp', tensors: 2, bytes: 21 }),
        checkpoints: { files: 'f', empty: null, module: 'm', tcp: null },
        mapped: 2,
        unmapped: 1,
        'token None': ['unauthorized', 401],
        'token wrong': ['unauthorized', 401],
        deleted: [
          { name: 'files', existed: true },
          { name: 'files', existed: false },
        ],
      })
    },
    TIMEOUT_MS,
  )

  test(
    "its order of names and its dtypes are core's",
    async () => {
      const names = [
        'a10',
        'a9',
        'a010',
        'a9b',
        'a',
        '',
        'ä',
        '𝛼',
        '\uffee',
        'a9.10',
        'a9.9',
        '00',
        '0',
        '10',
        '9',
      ]
      names.push('layers.10.w', 'layers.9.w', 'Layers.1', '9'.repeat(30), `1${'0'.repeat(30)}`)
      const child = Bun.spawn([PYTHON!, TRAINER, socket, 'tables'], {
        stdin: new Blob([JSON.stringify(names)]),
        stdout: 'pipe',
        env: { ...process.env, ...environment() },
      })
      const told = answerIn(await new Response(child.stdout).text())
      expect(told.order).toEqual([...naturalOrder(names)].map((index) => names[index]!))
      expect(told.dtypes).toEqual(DTYPES.flatMap(({ torch }) => torch ?? []).sort())
    },
    TIMEOUT_MS,
  )

  test(
    "the README's example runs",
    async () => {
      const readme = readFileSync(join(ROOT, 'README.md'), 'utf8')
      const [, example] = /```python\n([^]*?)```/.exec(readme)!
      expect(example).toContain('http://localhost:19730/collective_rpc')
      const setting = [
        'import torch',
        'model = torch.nn.Linear(4, 5)',
        'steps = range(2)',
        'train = lambda model: torch.nn.init.normal_(model.weight)',
      ]
      const script = `${setting.join('\n')}\n${example!.replace('http://localhost:19730/collective_rpc', url)}`
      const { status, stderr } = await run([PYTHON!, '-c', script], environment())
      expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
      const tensors = await engineTensors()
      expect(Object.keys(tensors).sort()).toEqual(['bias', 'weight'])
    },
    TIMEOUT_MS,
  )
})
