import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CKPT, run, type Scratch, scratch } from '../../../../test/support/process.ts'

let dir: Scratch
beforeAll(() => {
  dir = scratch()
})
afterAll(() => dir.remove())

/** Runs `ckpt` where no daemon of the user's can be met. */
function ckpt(...args: string[]) {
  return run([...CKPT, ...args], { XDG_RUNTIME_DIR: dir.path, XDG_STATE_HOME: dir.path })
}

/** The one document on stdout; fails when there is anything else. */
async function json(...args: string[]) {
  const result = await ckpt(...args, '--json')
  return { status: result.status, document: JSON.parse(result.stdout), stderr: result.stderr }
}

const AMONG = ['--devices', 'host', '--leader', '127.0.0.1:1', '--node-rank', '0', '--nodes', '2']

test('an address that is taken is a failure, and the usage was right', async () => {
  const taken = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } })
  try {
    const token = join(dir.path, 'cluster-token')
    writeFileSync(token, 'the-token\n', { mode: 0o600 })
    const where = ['--leader', `127.0.0.1:${taken.port}`, '--cluster-token-file', token]
    const { status, stderr } = await ckpt('serve', ...AMONG, ...where)
    expect(stderr).toMatch(/^ckpt: the leader cannot listen .*Address already in use\n$/)
    expect(status).toBe(1)
  } finally {
    taken.stop(true)
  }
})

describe('wrong usage is status 2', () => {
  const wrong: [string, string[]][] = [
    ['an unknown command', ['fly']],
    ['an unknown option', ['ls', '--fly']],
    ['a missing argument', ['rm']],
    ['no number', ['serve', '--ranks', 'two']],
    ['a choice that is none', ['update', '--update-method', 'carrier-pigeon']],
    ['TCP without a token', ['serve', '--listen', '127.0.0.1:0']],
    ['a cluster without a token', ['serve', ...AMONG]],
    ['a cluster token that is not there', ['serve', ...AMONG, '--cluster-token-file', '/nowhere']],
    ['a token that is not there', ['ls', '--daemon', 'http://h:1', '--token-file', '/nowhere']],
    ['a daemon address that is none', ['ls', '--daemon', 'nonsense']],
    ['no model to plan for', ['plan']],
    ['no engine', ['engine-map']],
    ['a model that is none', ['plan', '--model', 'gpt-9']],
    ['nothing to update from', ['update']],
  ]
  test.each(wrong)('%s', async (_, args) => {
    const human = await ckpt(...args)
    expect(human.stdout).toBe('')
    expect(human.stderr).toStartWith('ckpt: ')
    expect(human.stderr).not.toContain('name the file')
    expect(human.status).toBe(2)
    const machine = await json(...args)
    expect(machine.status).toBe(2)
    expect(machine.document.error.code).toBe('bad_request')
    expect(machine.document.error.message.length).toBeGreaterThan(5)
    expect(machine.stderr).toBe('')
  })

  test('no command at all shows the help on stderr', async () => {
    const { status, stdout, stderr } = await ckpt()
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' })
    expect(stderr).toContain('Usage: ckpt')
  })
})

describe('help and version are status 0', () => {
  test.each([
    ['--help', 'Exit codes'],
    ['--version', '0.1.0'],
    ['update --help', '--inference-parallel-size'],
    ['help serve', '--rank-sockets'],
  ])('%s', async (args, text) => {
    const { status, stdout } = await ckpt(...args.split(' '))
    expect(status).toBe(0)
    expect(stdout).toContain(text)
  })

  test('the many options of update are in groups', async () => {
    const { stdout } = await ckpt('update', '--help')
    const groups = stdout.split(/^(?=\S.*:$)/m).map((group) => group.split('\n'))
    const found = groups.map(([title, ...lines]) => [
      title,
      lines.filter((line) => line.startsWith('  -')).length,
    ])
    expect(Object.fromEntries(found)).toMatchObject({
      'Options:': 4,
      'Checkpoint:': 9,
      'Engine:': 8,
      'Update:': 10,
      'Without a running daemon:': 4,
    })
  })
})

describe('a daemon that cannot be reached is status 3', () => {
  const engine = ['engine-map', 'http://localhost:1']
  const commands = [['ls'], ['ls', 'name'], ['rm', 'name'], ['status'], ['abort', 'id'], engine]
  test.each(commands)('%s %s', async (...args) => {
    const words = args.filter((word) => word !== undefined)
    const human = await ckpt(...words)
    expect(human.status).toBe(3)
    expect(human.stderr).toContain('ckpt serve')
    const machine = await json(...words, '--daemon', join(dir.path, 'nobody.sock'))
    expect(machine.status).toBe(3)
    expect(machine.document.error.code).toBe('daemon_unreachable')
    expect(machine.document.error.message).toContain('nobody.sock')
  })

  test('over TCP, and with update', async () => {
    const model = join(dir.path, 'one')
    mkdirSync(model, { recursive: true })
    const header = '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    const prefix = new Uint8Array(8)
    prefix[0] = header.length
    writeFileSync(
      join(model, 'model.safetensors'),
      Buffer.concat([prefix, Buffer.from(`${header}x`)]),
    )
    const args = ['update', '--checkpoint-path', model, '--daemon', 'http://127.0.0.1:1']
    const { status, document } = await json(...args)
    expect(document.error.code).toBe('daemon_unreachable')
    expect(status).toBe(3)
  })

  test('what answers there is no daemon', async () => {
    const server = Bun.serve({ port: 0, fetch: () => new Response('hello', { status: 418 }) })
    try {
      const { status, document } = await json('ls', '--daemon', `127.0.0.1:${server.port}`)
      expect(status).toBe(3)
      expect(document.error.message).toContain('is not a ckpt daemon')
    } finally {
      await server.stop(true)
    }
  })
})

describe('update refuses what it cannot load before it asks a daemon', () => {
  test.each([
    ['--checkpoint-path', '/no/such/dir', 'file_not_found'],
    ['--load-metas-file', '/no/such/file', 'file_not_found'],
  ])('%s %s', async (option, value, code) => {
    const { status, document } = await json('update', option, value)
    expect(document.error.code).toBe(code)
    expect(document.error.message).toContain(value)
    expect(status).toBe(1)
  })

  test('pickled metas, by name', async () => {
    const path = join(dir.path, 'metas.pkl')
    writeFileSync(path, new Uint8Array([0x80, 4, 0x7d, 0x2e]))
    const { status, document } = await json('update', '--load-metas-file', path)
    expect(document.error.code).toBe('format_not_supported')
    expect(document.error.message).toContain('pickle')
    expect(document.error.message).toContain('--save-metas-file')
    expect(status).toBe(1)
  })
})

describe('plan', () => {
  test('is as fast as the link for a dense model', async () => {
    const { status, document } = await json('plan', '--model', 'qwen3-8b')
    expect(status).toBe(0)
    expect(document.tensors).toBe(399)
    expect(document.mode).toBe('pipelined')
    expect(document.gb_per_s).toBeGreaterThan(50)
    expect(document.gb_per_s).toBeLessThan(54)
    expect(document.tenths_s).toHaveLength(10)
  })

  test('shows what the engine costs a model of many tensors', async () => {
    const of = (us: string) =>
      json('plan', '--model', 'qwen3-30b-a3b', '--reload-us-per-tensor', us)
    const fast = (await of('7')).document
    const slow = (await of('100')).document
    expect(fast.tensors).toBe(18_867)
    // 18,867 tensors of 100 us each
    expect(slow.seconds).toBeGreaterThan(1.88)
    expect(fast.seconds).toBeLessThan(slow.seconds / 1.4)
  })

  test('tells what a cluster is bound by, and its timeline', async () => {
    const trace = join(dir.path, 'plan-trace.json')
    const cluster = ['--hosts', '2', '--devices-per-host', '8', '--tensor-parallel', '16']
    const rates = ['--broadcast-gbps', '100', '--reload-us-per-tensor', '1']
    const args = ['--model', 'qwen3-8b', ...cluster, ...rates, '--trace', trace]
    const { document } = await json('plan', ...args)
    expect(document).toMatchObject({ ranks: 16, tensor_parallel: 16, bound_by: 'broadcast' })
    const { host, rank } = document.host_bytes
    // striped by whole tensors, each at an aligned place
    const [half, largest] = [document.bytes / 2, document.largest.bytes]
    expect(host).toBeWithin(half, half + 1.01 * largest)
    expect(rank).toBe(host / 8)
    const { traceEvents } = await Bun.file(trace).json()
    const names = new Set(traceEvents.flatMap((one: { args?: { name: string } }) => one.args?.name))
    expect([...names]).toContain('broadcast')
    expect([...names]).toContain('h2d of rank 15')
    const spans = traceEvents.filter(({ ph }: { ph: string }) => ph === 'X')
    const ends = spans.map(({ ts, dur }: { ts: number; dur: number }) => ts + dur)
    expect(Math.max(...ends) / 1e6).toBeCloseTo(document.seconds, 3)
    const odd = ['--devices-per-host', '8', '--tensor-parallel', '3']
    expect((await json('plan', '--model', 'qwen3-8b', ...odd)).status).toBe(2)
    const nowhere = await json('plan', '--model', 'qwen3-8b', '--trace', dir.path)
    expect(nowhere.status).toBe(2)
    expect(nowhere.document.error.message).toContain('cannot be written')
  })

  test('says what a direct update would take, and whether it would be one', async () => {
    const hosts = ['plan', '--model', 'qwen3-8b', '--hosts', '2', '--devices-per-host', '8']
    const sliced = [...hosts, '--tensor-parallel', '16', '--h2d-gbps', '50']
    const { bytes, direct } = (await json(...sliced)).document
    expect(direct).toMatchObject({ bound_by: 'h2d', link_bytes: bytes / 16, chosen: true })
    expect(direct.seconds).toBeCloseTo(bytes / 16 / 50e9, 6)
    // each host needs a half, and holds a half of that
    expect(direct.read_bytes).toBeCloseTo(bytes / 4, 0)
    const slow = (await json(...sliced, '--network-gbps', '1')).document.direct
    expect(slow).toMatchObject({ bound_by: 'network', seconds: bytes / 4 / 1e9 })
    const text = await ckpt(...sliced)
    expect(text.stdout).toContain('updates would be done so')
    const fast = ['--broadcast-gbps', '200', '--network-gbps', '400']
    const replicas = ['plan', '--model', 'qwen3-8b', '--hosts', '8', ...fast]
    expect((await json(...replicas)).document.direct.chosen).toBe(false)
    expect((await ckpt(...replicas)).stdout).toContain('through the ring: it is faster')
  })

  test('names the tensor that does not fit', async () => {
    const { status, document } = await json('plan', '--model', 'qwen3-8b', '--free-gib', '1')
    expect(status).toBe(1)
    expect(document.error.code).toBe('tensor_too_large')
    expect(document.error.tensor).toBe('lm_head.weight')
  })

  test('takes tensors from a file', async () => {
    const path = join(dir.path, 'tensors.json')
    writeFileSync(path, JSON.stringify([{ name: 'a', dtype: 'F32', shape: [4, 4] }]))
    const { document } = await json('plan', '--model', path)
    expect(document).toMatchObject({ tensors: 1, bytes: 64, largest: { name: 'a', bytes: 64 } })
    writeFileSync(path, JSON.stringify([{ name: 'a', dtype: 'F32', shape: [-1] }]))
    expect((await json('plan', '--model', path)).status).toBe(2)
    writeFileSync(path, JSON.stringify([{ name: 'a', dtype: 'F33', shape: [1] }]))
    expect((await json('plan', '--model', path)).document.error.message).toContain('F33')
  })
})

test('doctor names a fix for everything that is not ok', async () => {
  const { document } = await json('doctor')
  const names = document.checks.map((check: { name: string }) => check.name)
  expect(names).toContain('libzmq')
  expect(names).toContain('locked memory')
  for (const check of document.checks) {
    expect(check.found.length).toBeGreaterThan(0)
    if (check.state !== 'ok') expect(check.fix?.length).toBeGreaterThan(5)
  }
  expect(document.ok).toBe(!document.checks.some((c: { state: string }) => c.state === 'missing'))
})
