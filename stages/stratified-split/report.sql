select count(distinct stratum) as strata,
       count(*) filter (part = 'train') as train_rows,
       count(*) filter (part = 'validation') as validation_rows
from output
