select rows.id, rows.question, struct_extract(rows, $response)::varchar as reference, predictions.prediction
from rows
join predictions using (id)
