import { describe, expect, test } from 'bun:test'
import { CkptError } from '@ckpt/core'
import {
  defaultSocketPath,
  limitOptions,
  listenOptions,
  parseTcpAddress,
  SERVE_DEFAULTS,
  type ServeOptions,
  stateRoot,
} from './options.ts'

const GIB = 1024 ** 3
const with_ = (more: Partial<ServeOptions>): ServeOptions => ({ ...SERVE_DEFAULTS, ...more })

function refusal(run: () => unknown): { code: string; message: string } {
  try {
    run()
  } catch (error) {
    if (error instanceof CkptError) return error.failure
    throw error
  }
  throw new Error('was accepted')
}

describe('where to listen', () => {
  test('without an address it is the private default socket', () => {
    expect(listenOptions(with_({}), { XDG_RUNTIME_DIR: '/run/user/7' })).toMatchObject({
      uds: '/run/user/7/ckpt/ckpt.sock',
      tcp: null,
      rankSockets: null,
    })
    expect(defaultSocketPath({})).toBe(`/tmp/ckpt-${process.getuid?.()}/ckpt.sock`)
    expect(defaultSocketPath({ XDG_RUNTIME_DIR: 'relative' })).toStartWith('/tmp/ckpt-')
  })

  test('several at once', () => {
    const told = { uds: '/a.sock', listen: '[::1]:80', tokenFile: '/t', rankSockets: '/r-%d.sock' }
    expect(listenOptions(with_(told), {})).toMatchObject({
      uds: '/a.sock',
      tcp: { host: '::1', port: 80 },
      tokenFile: '/t',
      rankSockets: '/r-%d.sock',
    })
    const tcp = listenOptions(with_({ listen: 'localhost:0', tokenFile: '/t' }), {})
    expect(tcp.uds).toBeNull()
  })

  test('TCP without a token is refused', () => {
    const { code, message } = refusal(() => listenOptions(with_({ listen: '127.0.0.1:80' }), {}))
    expect(code).toBe('bad_request')
    expect(message).toStartWith('--listen needs --token-file')
    expect(message).not.toContain('\n')
  })

  test.each(['80', ':80', 'host:', 'host:65536', 'a:b:80', '::1:80', 'host:8 0', ''])(
    '%p is no TCP address',
    (text) => {
      expect(refusal(() => parseTcpAddress(text)).message).toContain('HOST:PORT')
    },
  )

  test('a path that Linux cannot bind is refused with its length', () => {
    const long = `/${'x'.repeat(107)}`
    expect(refusal(() => listenOptions(with_({ uds: long }), {})).message).toContain('108 bytes')
    expect(listenOptions(with_({ uds: long.slice(0, -1) }), {}).uds).toHaveLength(107)
  })

  test.each(['/run/rank.sock', '/run/%d/%d.sock'])('%p is no pattern for ranks', (pattern) => {
    expect(refusal(() => listenOptions(with_({ rankSockets: pattern }), {})).message).toContain(
      '%d',
    )
  })

  test('state lies in the home directory unless told otherwise', () => {
    expect(stateRoot({ HOME: '/home/a' })).toBe('/home/a/.local/state/ckpt')
    expect(stateRoot({ HOME: '/home/a', XDG_STATE_HOME: '/s' })).toBe('/s/ckpt')
    expect(refusal(() => stateRoot({})).message).toContain('--state-dir')
  })
})

describe('limits', () => {
  test('nothing told', () => {
    expect(limitOptions(with_({}), {})).toEqual({
      allowedDirs: null,
      allowedEngines: null,
      hostMemoryBytes: null,
      evict: false,
      inPlace: 'never',
      ringBytes: null,
      bucketBytes: null,
      memoryFraction: 0.9,
      spin: 'auto',
      broadcast: 'copies',
      idleCommunicatorMs: 600_000,
    })
  })

  test("checkpoint-engine's names: a bucket of that many GiB, a ring of two", () => {
    const limits = limitOptions(with_({}), {
      PS_MAX_BUCKET_SIZE_GB: '0.5',
      PS_MEM_FRACTION: '0.25',
    })
    expect(limits).toMatchObject({ bucketBytes: GIB / 2, ringBytes: GIB, memoryFraction: 0.25 })
  })

  test('flags come before the environment', () => {
    const sizes = { ringGib: 3, bucketMib: 64, memoryFraction: 0.5, hostMemoryGib: 1.5 }
    const told = with_({ ...sizes, evict: true })
    expect(
      limitOptions(told, { PS_MAX_BUCKET_SIZE_GB: '8', PS_MEM_FRACTION: '0.1' }),
    ).toMatchObject({
      ringBytes: 3 * GIB,
      bucketBytes: 64 * 1024 ** 2,
      memoryFraction: 0.5,
      hostMemoryBytes: 1.5 * GIB,
      evict: true,
    })
  })

  test('directories are made absolute', () => {
    expect(limitOptions(with_({ allowDirs: ['/a/../b', 'c'] }), {}).allowedDirs).toEqual([
      '/b',
      `${process.cwd()}/c`,
    ])
  })

  test.each([
    [{}, { PS_MAX_BUCKET_SIZE_GB: 'eight' }, "PS_MAX_BUCKET_SIZE_GB is 'eight'"],
    [{}, { PS_MAX_BUCKET_SIZE_GB: '0' }, 'PS_MAX_BUCKET_SIZE_GB is 0'],
    [{}, { PS_MEM_FRACTION: '1.5' }, 'PS_MEM_FRACTION is 1.5'],
    [{ hostMemoryGib: -1 }, {}, '--host-memory-gib is -1'],
    [{ ringGib: Number.NaN }, {}, '--ring-gib is NaN'],
    [{ bucketMib: 0 }, {}, '--bucket-mib is 0'],
    [{ inPlace: 'sometimes' as 'never' }, {}, '--in-place is never, always or consume'],
    [{ spin: 'yes' as 'on' }, {}, "--spin is auto, on or off, not 'yes'"],
  ])('%p %p is refused', (options, env, message) => {
    expect(refusal(() => limitOptions(with_(options), env)).message).toContain(message)
  })
})
