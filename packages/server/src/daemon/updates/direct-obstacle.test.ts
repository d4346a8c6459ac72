import { expect, test } from 'bun:test'
import { directObstacle } from './direct-obstacle.ts'

const engine = (notDirect: string | null | undefined, ...ranks: number[]) => ({
  spec: { url: 'http://engine', ranks },
  record: { notDirect },
  isNative: false,
})
const withoutExtension = { ...engine(undefined, 0, 1), isNative: true }
const unsaid =
  'http://engine has taken no update of this daemon with ckpt_worker yet: send one without mode direct first'

test.each([
  ['auto', [engine(null, 0, 1)], null],
  ['direct', [engine(null, 0), engine(null, 1)], null],
  ['auto', [engine(undefined, 0, 1)], { told: null }],
  ['direct', [engine(undefined, 0, 1)], { told: unsaid }],
  ['auto', [engine(null, 0), engine('it sleeps', 1)], { told: 'it sleeps' }],
  ['auto', [engine(null, 0)], { told: null }],
  ['direct', [engine(null, 0)], { told: 'no engine is contacted for rank 1' }],
  ['pipelined', [engine(null, 0, 1)], { told: null }],
  ['serial', [engine(null, 0, 1)], { told: null }],
  ['auto', [withoutExtension], { told: "vLLM's own transfer does not tell where the weights lie" }],
] as const)('%s of %j', (mode, engines, wanted) => {
  expect(directObstacle({ mode, ranks: [0, 1] }, engines)).toEqual(wanted)
})
