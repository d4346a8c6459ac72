export { FAULTS, describeFaults } from './faults.ts'
export {
  type ReferenceEngineOptions,
  type RunningEngine,
  runReferenceEngine,
} from './serve.ts'
export { shardOf } from './shard.ts'
