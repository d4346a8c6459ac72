import type { Plan } from '@ckpt/core'
import { modelTensors } from 'ckpt/cli/model-shapes'
import type { Prediction } from 'ckpt/cli/plan-prediction'
import type { Bench } from './bench.ts'
import { atMost } from './claims.ts'
import type { Checked } from './measure.ts'
import { type Model, models, planOf } from './models.ts'
import { predictWith } from './predicted.ts'
import { measureRow, type Row } from './row.ts'

/** What `ckpt plan` is asked for at most, and how long it may take. */
const CLUSTER = { model: 'kimi-k2', hosts: 1250, devicesPerHost: 8 } as const
const SECONDS_MOST = 2

/** The mode of an update and its plan, from the table of tensors; and the prediction of the largest. */
export const plan: Bench = {
  name: 'plan',
  async *rows() {
    for (const model of models()) {
      let made: Plan | null = null
      yield await measureRow(
        { bench: 'plan', case: model.name, tensors: model.table.names.length },
        {
          prepare: () => {
            made = null
          },
          run: () => {
            made = planOf(model)
          },
          check: () => comparePlan(model, made),
        },
      )
    }
    yield await predictionRow()
  },
}

async function predictionRow(): Promise<Row> {
  const { model, hosts, devicesPerHost } = CLUSTER
  const tensors = modelTensors(model)
  const name = `${model}, ${hosts * devicesPerHost} ranks, predicted`
  let made: Prediction | null = null
  const row = await measureRow(
    { bench: 'plan', case: name, tensors: tensors.length },
    {
      prepare: () => {
        made = null
      },
      run: () => {
        made = predictWith({ tensors, hosts, devicesPerHost }).prediction
      },
      check: () => ({ compared: tensors.length, wrong: tensors.length - (made?.tensors ?? 0) }),
    },
  )
  const what = `plan ${name}: planned and simulated`
  return { ...row, claims: [atMost(what, row.p99_s, SECONDS_MOST, 's')] }
}

/**
 * Counts the tensors that the plan's segments do not bring, whole and from their own place, to where the plan says that they
 * lie in the ring, or that the plan names not exactly once.
 */
export function comparePlan({ table }: Model, made: Plan | null): Checked {
  const compared = table.names.length
  if (made === null) return { compared, wrong: compared }
  const right = new Uint8Array(compared)
  for (let bucket = 0; bucket < made.bucketCount; bucket++) {
    const end = made.bucketFirstTensor[bucket + 1] as number
    for (let k = made.bucketFirstTensor[bucket] as number; k < end; k++) {
      const tensor = made.order[k] as number
      const offset = table.offsets[tensor] as number
      const bytes = table.bytes[tensor] as number
      const brought = isBrought(made, bucket, offset, made.tensorRing[tensor] as number, bytes)
      if (brought) right[tensor] = (right[tensor] as number) + 1
    }
  }
  return { compared, wrong: right.filter((times) => times !== 1).length }
}

/** Follows source bytes `[source, source + bytes)` through the bucket's segments, which ascend in the ring. */
function isBrought(
  made: Plan,
  bucket: number,
  source: number,
  ring: number,
  bytes: number,
): boolean {
  if (ring + bytes > made.ringBytes) return false
  const end = made.bucketFirstSegment[bucket + 1] as number
  for (let done = 0; done < bytes; ) {
    const segment = lastAt(made, made.bucketFirstSegment[bucket] as number, end, ring + done)
    const into = ring + done - (made.segmentRing[segment] ?? Number.NaN)
    const left = (made.segmentSize[segment] ?? 0) - into
    const from = (made.segmentSource[segment] ?? Number.NaN) + into
    if (!(into >= 0 && left > 0) || from !== source + done) return false
    done += left
  }
  return true
}

/** The last segment of `[low, high)` that begins at or before `ring`. */
function lastAt({ segmentRing }: Plan, low: number, high: number, ring: number): number {
  let begin = low
  let end = high
  while (end - begin > 1) {
    const middle = (begin + end) >> 1
    if ((segmentRing[middle] as number) <= ring) begin = middle
    else end = middle
  }
  return begin
}
