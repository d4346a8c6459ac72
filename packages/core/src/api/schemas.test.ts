import { describe, expect, test } from 'bun:test'
import type { type } from 'arktype'
import type { Failure } from './errors.ts'
import {
  AbortRequest,
  BuffersRequest,
  CheckpointName,
  CollectiveRpcRequest,
  ErrorBody,
  EngineMapAnswer,
  EngineMapQuery,
  EngineWeights,
  Metas,
  parseBody,
  RegisterAnswer,
  RegisterRequest,
  TensorsRequest,
  UpdateId,
  UpdateReport,
  UpdateRequest,
  UpdateState,
  UpdateWeightsFromIpcRequest,
} from './schemas.ts'

function refuses(schema: type.Any, value: unknown, message: string): void {
  expect(() => parseBody(schema, value)).toThrow(
    expect.objectContaining({ code: 'bad_request', message, status: 400 }),
  )
}

const OWNER = {
  memory_buffer_metas_list: [
    {
      metas: [
        { name: 'model.norm.weight', dtype: 'torch.bfloat16', shape: [4096], aligned_size: 8192 },
      ],
      ptr: 139_637_976_727_552,
      size: 8192,
    },
  ],
  p2p_store_addr: null,
  rdma_device: '',
}

const REPORT: UpdateReport = {
  update_id: 'u-1',
  checkpoint: 'a',
  version: null,
  mode: 'pipelined',
  mode_reason: 'the ring holds 4 buckets',
  ranks: 2,
  tensors: 104,
  bytes: 90_000_000,
  buckets: 6,
  ring_bytes: 2 ** 26,
  bucket_bytes: 2 ** 24,
  gb_per_s: 1.5,
  seconds: {
    total: 1,
    gather: 0,
    plan: 0.001,
    open: 0.1,
    transfer: 0.5,
    release: 0.01,
    post: 0.1,
    pause: 0,
    resume: 0,
  },
  stages: {
    h2d: { busy_s: 0.4, bytes: 90_000_000 },
    broadcast: { busy_s: 0, bytes: 0 },
    reload: { busy_s: 0.3, bytes: 90_000_000 },
  },
  device_bytes: { before: 0, peak: 2 ** 26, after: 0 },
  engines: [
    { url: 'http://localhost:19730', dialect: 'D4', ranks: [0, 1], result: 'ok', torn: false },
  ],
}

const PLACED = {
  source: 0,
  allocation: 0,
  destination: 0,
  run: 8,
  sizes: [1, 1, 1],
  source_strides: [0, 0, 0],
  destination_strides: [0, 0, 0],
}
const RANK_MAP = {
  rank: 0,
  digest: 'd',
  tensors: 1,
  copies: 1,
  bytes: 8,
  allocations: [8],
  placed: [PLACED],
}

describe('bodies that are taken', () => {
  test("checkpoint-engine's client bodies", () => {
    const bodies: [type.Any, unknown][] = [
      [RegisterRequest, { files: ['/ckpt/model-00001.safetensors'] }],
      [RegisterRequest, { files: [] }],
      [
        UpdateRequest,
        { ranks: [], update_url: null, inference_group_ranks: [], timeout: 300.0, uds: null },
      ],
      [
        UpdateRequest,
        {
          ranks: [0, 1],
          update_url: 'http://localhost:19730/collective_rpc',
          inference_group_ranks: [0, 1],
          timeout: 600,
          uds: '/tmp/vllm.sock',
        },
      ],
      [UpdateRequest, {}],
      [Metas, { 0: OWNER, 17: { ...OWNER, p2p_store_addr: '10.0.0.1:7777', host: 'more' } }],
      [Metas, {}],
      [
        CollectiveRpcRequest,
        {
          method: 'update_weights_from_ipc',
          args: [{ 'GPU-1': 'ipc://@checkpoint-engine-GPU-1-0.sock' }],
          timeout: 300.0,
        },
      ],
      [
        UpdateWeightsFromIpcRequest,
        { zmq_handles: { 'GPU-1': 'ipc:///a' }, flush_cache: true, weight_version: '7' },
      ],
    ]
    for (const [schema, body] of bodies) expect(parseBody(schema, body)).toEqual(body)
  })

  test('every field of an update request', () => {
    const request: UpdateRequest = {
      engines: [
        { url: 'http://h:1', ranks: [0, 1], uds: '/s', engine: 'sglang' },
        { url: 'http://h:2', ranks: [2] },
      ],
      engine: 'auto',
      engine_method: 'update_weights_from_ipc',
      mode: 'serial',
      pause: 'wait',
      pause_timeout: 10,
      open_timeout: 60,
      require: 'survivors',
      if_busy: 'fail',
      update_id: 'step-000.12',
      wait: false,
      weight_version: '7',
    }
    expect(parseBody(UpdateRequest, request)).toEqual(request)
  })

  test('answers may carry more than is known', () => {
    const answer = { name: 'a', version: null, tensors: 1, bytes: 2, seconds: 0.5, later: [] }
    expect(parseBody(RegisterAnswer, answer)).toEqual(answer as RegisterAnswer)
    expect(parseBody(UpdateReport, { ...REPORT, later: 1 })).toMatchObject(REPORT)
    const state: UpdateState = {
      update_id: 'u-1',
      checkpoint: 'a',
      state: 'done',
      phase: null,
      buckets_done: 6,
      buckets: 6,
      bytes_done: 1,
      bytes: 1,
      started_at: '2026-09-01T00:00:00.000Z',
      report: REPORT,
      map: { 'GPU-1': 'ipc:///a' },
    }
    expect(parseBody(UpdateState, state)).toEqual(state)
    const weights: EngineWeights = {
      version: '7',
      updates: 2,
      torn: false,
      ranks: [{ uuid: 'GPU-1', tensors: { w: { dtype: 'BF16', shape: [2], sha256: '00' } } }],
    }
    expect(parseBody(EngineWeights, weights)).toEqual(weights)
    const tensor = { name: 'w', dtype: 'bfloat16', shape: [4] }
    const map: EngineMapAnswer = { url: 'http://h', tensor, ranks: [RANK_MAP] }
    expect(parseBody(EngineMapAnswer, { ...map, later: 1 })).toMatchObject(map)
  })

  test('a failure goes through the schema of errors unchanged', () => {
    const failure: Required<Failure> = {
      code: 'engine_failed',
      message: 'words',
      rank: 3,
      phase: 'post',
      tensor: 'w',
      update_id: 'u',
    }
    expect(parseBody(ErrorBody, { error: failure })).toEqual({ error: failure })
    refuses(
      ErrorBody,
      { error: { code: 'nonsense', message: '' } },
      expect.stringContaining('error.code must be'),
    )
  })
})

describe('bodies that are refused, in words', () => {
  const cases: [string, type.Any, unknown, string][] = [
    ['nothing', RegisterRequest, undefined, 'the body must be an object (was undefined)'],
    ['null', RegisterRequest, null, 'the body must be an object (was null)'],
    ['a missing field', RegisterRequest, {}, 'files must be an array (was missing)'],
    ['a wrong type', RegisterRequest, { files: '/a' }, 'files must be an array (was string)'],
    ['an unknown field', RegisterRequest, { files: [], file: [] }, "unknown field 'file'"],
    [
      'a path that is none',
      RegisterRequest,
      { files: [7] },
      'files[0] must be a string (was a number)',
    ],
    ['an empty path', RegisterRequest, { files: [''] }, 'files[0] must be non-empty'],
    [
      'NUL in a path',
      RegisterRequest,
      { files: ['/a\0b'] },
      'files[0] must be a path without NUL characters (was "/a\\u0000b")',
    ],
    ['no time at all', UpdateRequest, { timeout: 0 }, 'timeout must be positive (was 0)'],
    ['a year', UpdateRequest, { timeout: 3e7 }, 'timeout must be at most 604800 (was 30000000)'],
    ['no number', UpdateRequest, { timeout: Number.NaN }, 'timeout must be a number (was NaN)'],
    ['a rank below 0', UpdateRequest, { ranks: [0, -1] }, 'ranks[1] must be non-negative (was -1)'],
    ['half a rank', UpdateRequest, { ranks: [0.5] }, 'ranks[0] must be an integer (was 0.5)'],
    [
      'a huge rank',
      UpdateRequest,
      { ranks: [65536] },
      'ranks[0] must be less than 65536 (was 65536)',
    ],
    [
      'a mode',
      UpdateRequest,
      { mode: 'fast' },
      'mode must be "auto", "direct", "pipelined" or "serial" (was "fast")',
    ],
    [
      'an engine',
      UpdateRequest,
      { engines: [{ url: 'http://h', ranks: [], gpu: 1 }] },
      "unknown field 'engines[0].gpu'",
    ],
    [
      'an id',
      UpdateRequest,
      { update_id: '../x' },
      'update_id must be an id of at most 128 letters, digits, dots, dashes and underscores (was "../x")',
    ],
    [
      'a method',
      UpdateRequest,
      { engine_method: 'a b' },
      'engine_method must be a name of at most 128 letters, digits and underscores, or native-ipc (was "a b")',
    ],
    ['no bytes', BuffersRequest, { bytes: [0] }, 'bytes[0] must be at least 1 (was 0)'],
    [
      'too many bytes',
      BuffersRequest,
      { bytes: [2 ** 53] },
      'bytes[0] must be at most 9007199254740991 (was 9007199254740992)',
    ],
    [
      'an offset',
      TensorsRequest,
      { buffers: [{ id: 'a', tensors: [{ name: 'w', dtype: 'BF16', shape: [1], offset: -1 }] }] },
      'buffers[0].tensors[0].offset must be non-negative (was -1)',
    ],
    ['a rank that is a word', Metas, { zero: OWNER }, "unknown field 'zero'"],
    [
      'metas without an address',
      Metas,
      { 0: { ...OWNER, p2p_store_addr: 5 } },
      'value at ["0"].p2p_store_addr must be a string or null (was a number)',
    ],
    ['no engine', EngineMapQuery, {}, 'url must be a string (was missing)'],
    ['an empty URL', EngineMapQuery, { url: '' }, 'url must be non-empty'],
    ['a socket', EngineMapQuery, { url: 'http://h', uds: '' }, 'uds must be non-empty'],
    ['no tensor', EngineMapQuery, { url: 'http://h', tensor: '' }, 'tensor must be non-empty'],
    [
      'a question that nobody knows',
      EngineMapQuery,
      { url: 'http://h', rank: '0' },
      "unknown field 'rank'",
    ],
    [
      'a copy of two dimensions',
      EngineMapAnswer,
      { url: 'http://h', ranks: [{ ...RANK_MAP, placed: [{ ...PLACED, sizes: [1, 1] }] }] },
      'ranks[0].placed[0].sizes must be exactly length 3 (was 2)',
    ],
    [
      'bytes that no number holds',
      EngineMapAnswer,
      { url: 'http://h', ranks: [{ ...RANK_MAP, bytes: 2 ** 53 }] },
      'ranks[0].bytes must be at most 9007199254740991 (was 9007199254740992)',
    ],
    ['a reason', AbortRequest, { reason: 5 }, 'reason must be a string (was a number)'],
  ]
  for (const [what, schema, body, message] of cases) {
    test(what, () => refuses(schema, body, message))
  }

  test('at most three faults are named, each cut short', () => {
    refuses(
      RegisterRequest,
      { files: [1, 2, 3, 4, 5] },
      'files[0] must be a string (was a number); files[1] must be a string (was a number); files[2] must be a string (was a number); and 2 more',
    )
    const long = { update_id: '/'.repeat(10_000) }
    expect(() => parseBody(UpdateRequest, long)).toThrow(/^update_id .{150,200}\.\.\.$/)
  })

  test('names that would not survive an URL or a file name', () => {
    for (const name of ['', 'a/b', 'a\nb', 'x'.repeat(256)]) {
      expect(() => parseBody(CheckpointName, name)).toThrow(/the body must be a name of 1 to 255/)
    }
    for (const name of ['my-checkpoint-iter-0', 'ä b', 'x'.repeat(255)]) {
      expect(parseBody(CheckpointName, name)).toBe(name)
    }
    for (const id of ['', '.hidden', 'a/b', 'x'.repeat(129)]) {
      expect(() => parseBody(UpdateId, id)).toThrow(/must be an id/)
    }
  })

  test('__proto__ is an unknown field like any other', () => {
    refuses(RegisterRequest, JSON.parse('{"files":[],"__proto__":{}}'), "unknown field '__proto__'")
  })
})
